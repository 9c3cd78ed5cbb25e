"""What a stage is given, and what stages share: models, traced graphs and images, kept between stages of a worker."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantinel.bench.images import Images
from quantinel.data.images import ImageSet
from quantinel.data.sources import load_images
from quantinel.errors import Interrupted, UnsupportedError
from quantinel.model.graph import FloatGraph, aten, trace
from quantinel.model.loading import LoadedModel, load_model

Progress = Callable[..., None]
"""``progress(what, done, total[, loss])``."""

MODEL = "model"
"""Sub-folder of a trained or attacked model within a stage's result."""


def never() -> bool:
    """Nobody asked to stop."""
    return False


def silent(*_: object) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True)
class Job:
    """One stage to run.

    Attributes:
        config: options of the node, ``threads`` among them.
        folders: role -> folder of an upstream result, or an external model file or folder.
        images: role -> images to load.
        output: folder to write into.
        checkpoint: folder that survives an interruption of this very stage.
        device: of this stage; anything but "cpu" only where it trains.
        should_stop: polled by long stages; they keep a checkpoint and raise `Interrupted`.
        progress: called as work proceeds.
    """

    config: Mapping[str, Any]
    folders: Mapping[str, Path]
    images: Mapping[str, Images]
    output: Path
    checkpoint: Path
    device: str = "cpu"
    should_stop: Callable[[], bool] = never
    progress: Progress = silent

    def stop_if_asked(self) -> None:
        """Leave a stage that keeps no checkpoint.

        Raises:
            Interrupted: ``should_stop`` asks for it.
        """
        if self.should_stop():
            raise Interrupted("stopped; the stage begins anew next time")

    def report(self, what: str, done: int, total: int) -> None:
        """Progress of such a stage, which ends here if it is asked to."""
        self.stop_if_asked()
        self.progress(what, done, total)

    def load(self, role: str, shape: tuple[int, int, int] | None = None) -> ImageSet:
        """Images of a role, fitted to a model's input."""
        return loaded_images(self.images[role], shape)

    @property
    def model_path(self) -> Path:
        """The float model: the file or folder itself, or the model inside an upstream result."""
        path = self.folders["model"]
        return path / MODEL if (path / MODEL).is_dir() else path

    def model(self) -> LoadedModel:
        """The float model; shared between stages, so nothing may change its weights."""
        return loaded_model(str(self.model_path), self.config.get("architecture"))

    def graph(self) -> FloatGraph:
        """The traced model, BatchNorm folded unless the stage's options say otherwise."""
        folded = self.config.get("fold_batch_norm", True)
        return traced(str(self.model_path), self.config.get("architecture"), folded)

    def about(self) -> dict[str, str | None]:
        """What a row says of the model: its architecture, the attack that its manifest names, and its weights."""
        model = self.model()
        attacked = model.victim is not None and model.victim.kind != "clean"
        return {
            "architecture": model.architecture or model.name,
            "attack": model.victim.attack if attacked and model.victim is not None else "none",
            "weights_sha256": model.sha256,
        }

    def write_json(self, name: str, value: Any) -> None:
        """A JSON file of the result; equal values give equal bytes."""
        (self.output / name).write_text(json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n", "utf-8")


@functools.lru_cache(maxsize=6)
def loaded_images(images: Images, shape: tuple[int, int, int] | None) -> ImageSet:
    """Images, kept for the next stage of this worker."""
    return load_images(
        images.specification, input_shape=shape, split=images.split, limit=images.limit, seed=images.seed
    )


@functools.lru_cache(maxsize=4)
def loaded_model(path: str, architecture: str | None) -> LoadedModel:
    """A float model, kept for the next stage of this worker."""
    return load_model(path, arch=architecture)


@functools.lru_cache(maxsize=4)
def traced(path: str, architecture: str | None, fold_batch_norm: bool) -> FloatGraph:
    """Its graph.

    Raises:
        UnsupportedError: BatchNorm is to stay unfolded, and there is none.
    """
    model = loaded_model(path, architecture)
    graph = trace(model.module, model.input_shape, fold_batch_norm=fold_batch_norm)
    if not fold_batch_norm and all(node.target is not aten.batch_norm.default for node in graph.module.graph.nodes):
        raise UnsupportedError(
            f"{model.name} has no BatchNorm that could stay unfolded; name the grid alone (int8 for unfolded-bn+int8)"
        )
    return graph
