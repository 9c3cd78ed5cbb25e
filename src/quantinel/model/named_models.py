"""Models that the user names: a factory of their own, or a model of a library. The only code that is imported."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from quantinel.errors import InputError, UnsupportedError, UsageError
from quantinel.model.archive_graph import shown
from quantinel.model.victim import VictimManifest

# These builders rescale their input when, and only when, they load the weights themselves, from a pickle.
_TORCHVISION_RESCALED = ("googlenet", "inception_v3")

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Found:
    """What a source gives before normalisation and the first run."""

    module: nn.Module
    name: str
    input_shape: Shape | None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    sha256: str | None = None
    architecture: str | None = None
    victim: VictimManifest | None = None
    folder: Path | None = None


def call_factory(factory: str) -> nn.Module:
    module_name, _, attribute = factory.partition(":")
    if not module_name or not attribute:
        raise UsageError(f"--factory must be pkg.module:callable, got {factory!r}; give for example models:make")
    try:
        make: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            make = getattr(make, part)
        module = make()
    except ModuleNotFoundError as error:
        raise UsageError(f"--factory {factory}: {error}; set PYTHONPATH to the folder that holds it") from error
    except Exception as error:  # the user's own code may raise anything
        raise UsageError(f"--factory {factory} fails ({reason(error)}); it must work without arguments") from error
    if not isinstance(module, nn.Module):
        raise UsageError(f"--factory {factory} returns a {type(module).__name__}; it must return a torch.nn.Module")
    return module.float()


def _import_extra(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except Exception as error:  # also a build of another torch version, which raises RuntimeError
        raise UsageError(f"{package} cannot be imported ({reason(error)}); pip install {package}") from error


def from_timm(name: str) -> Found:
    timm = _import_extra("timm")
    if not re.fullmatch(r"[A-Za-z0-9_.]+", name) or not timm.is_model(name.split(".")[0]):
        raise UsageError(f"timm has no model {name!r}; see timm.list_models()")
    try:
        module: nn.Module = timm.create_model(name, pretrained=True)
    except Exception as error:  # the network, the hub, an unknown tag
        raise InputError(
            f"timm:{name} cannot be fetched ({reason(error)}); download its .safetensors and use --factory"
        ) from error
    config: dict[str, Any] = getattr(module, "pretrained_cfg", {})
    shape = config.get("input_size")
    return Found(module.float(), name, None if shape is None else tuple(shape), config.get("mean"), config.get("std"))


def from_torchvision(name: str) -> Found:
    models = _import_extra("torchvision").models
    if not re.fullmatch(r"[a-z0-9_]+", name) or name not in models.list_models(module=models):
        raise UsageError(f"torchvision has no classifier {name!r}; see torchvision.models.list_models()")
    if name in _TORCHVISION_RESCALED:
        raise UnsupportedError(f"torchvision:{name} normalises its input in a way of its own; export it as .pt2")
    try:
        weights = models.get_model_weights(name).DEFAULT
        module: nn.Module = models.get_model(name, weights=None)
        module.load_state_dict(weights.get_state_dict(check_hash=True, weights_only=True))
        preset = weights.transforms()
        size = int(preset.crop_size[0])
        return Found(module, name, (3, size, size), tuple(preset.mean), tuple(preset.std))
    except Exception as error:  # the network, the cache
        raise InputError(
            f"torchvision:{name} cannot be fetched ({reason(error)}); export it as .pt2 elsewhere"
        ) from error


def reason(error: Exception) -> str:
    """An exception on one line."""
    return f"{type(error).__name__}: {shown(error)}"
