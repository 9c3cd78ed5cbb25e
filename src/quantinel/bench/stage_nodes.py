"""The node of every stage: what it is told, which code it runs, which files and images it reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantinel.attacks import ATTACKS
from quantinel.bench.cells import FLOAT, NONE, Cell, located, methods_of
from quantinel.bench.defenses import NEAREST, Chosen, builder, chosen_defense
from quantinel.bench.deployment import Deployment
from quantinel.bench.images import Images
from quantinel.bench.methods import configure
from quantinel.bench.nodes import Node
from quantinel.bench.suite import Suite
from quantinel.detectors import DETECTORS
from quantinel.errors import UsageError
from quantinel.quantization.pruning import PruningScheme
from quantinel.quantization.reconstruction import PreparedMethod
from quantinel.quantization.scheme import QuantScheme, parse_scheme


@dataclass(frozen=True)
class Source:
    """A float model as stages get it: an upstream node or external files, with an architecture where needed."""

    inputs: dict[str, str]
    files: dict[str, str]
    architecture: str | None
    after: str = ""
    """The repair that made it, for labels."""
    fold_batch_norm: bool = True

    @property
    def traced(self) -> dict[str, Any]:
        """Options of `Job.graph`; folding is named only where it is left out, so that older results keep their keys."""
        return {"architecture": self.architecture, **({} if self.fold_batch_norm else {"fold_batch_norm": False})}


class StageNodes:
    """Makes the nodes of a suite's stages; places them nowhere.

    Args:
        suite: validated.
        root: data root, or None.
    """

    def __init__(self, suite: Suite, root: Path | None) -> None:
        self.suite, self.root = suite, root

    def train(self, cell: Cell) -> Node:
        """The model of a cell, trained from random weights."""
        entry, label = self.suite.models[cell.model], cell.model
        return Node(
            "train", f"train {label}, seed {cell.seed}",
            {"architecture": entry.architecture, "settings": entry.training, "seed": cell.seed, "data": entry.data},
            ("quantinel.bench.stages.train",), images=self._training(label),
        )  # fmt: skip

    def attack(self, cell: Cell, model: Source, scratch: bool, trigger: str | None) -> Node:
        """An attack on the model of a cell.

        Args:
            cell: with the attack.
            model: that it starts from.
            scratch: whether it starts from random weights of the model's architecture instead.
            trigger: id of the node whose trigger it is lent.
        """
        entry, method = self.suite.models[cell.model], methods_of(self.suite, cell)["attack"]
        config = {
            "attack": method.method,
            "settings": method.settings,
            "schemes": [parse_scheme(name).name for name in getattr(method, "schemes", ())],
            "seed": cell.seed,
            "data": entry.data,
            "architecture": entry.architecture if scratch else model.architecture,
        }
        return Node(
            "attack", f"attack {cell.model} with {cell.attack}, seed {cell.seed}", config,
            _modules("attack", ATTACKS[method.method].config.__module__),
            model.inputs if trigger is None else {**model.inputs, "trigger": trigger}, model.files,
            self._training(cell.model),
        )  # fmt: skip

    def prune(self, cell: Cell, model: Source, scheme: PruningScheme, chosen: Chosen | None) -> Node:
        config: dict[str, Any] = {"scheme": scheme.name, "architecture": model.architecture}
        defended = chosen is not None and chosen.kind == "pruning"
        if chosen is not None and defended:
            config |= {"defense": chosen.method.method, "settings": chosen.method.settings, "seed": cell.seed}
        images = {}
        if scheme.searched:  # nothing else depends on images or the seed
            config |= {"seed": cell.seed, **self._unlike(cell)}
            images = {"calibration": self._calibration(cell)}
        return Node(
            "prune", f"prune {_of(cell)} with {scheme.name}{f' and {cell.defense}' if defended else ''}", config,
            _modules("prune", *([chosen.module] if chosen is not None and defended else [])),
            model.inputs, model.files, images,
        )  # fmt: skip

    def train_quantized(self, cell: Cell, model: Source, deployment: Deployment) -> Node:
        config = {"scheme": deployment.name, "architecture": model.architecture, "seed": cell.seed}
        images = {"train": self._training(cell.model)["train"]}
        return Node(
            "qat",
            f"train {_of(cell)}{model.after} for {deployment.name}",
            config,
            _modules("qat"),
            model.inputs,
            model.files,
            images,
        )

    def repair(self, cell: Cell, model: Source, deployment: Deployment, chosen: Chosen) -> Node:
        name = self.suite.models[cell.model].data
        data = self.suite.data[name]
        if data.train is None:
            raise UsageError(
                f"{cell.defense} trains on images of data.{name}, which has no train entry; add train = ..."
            )
        config: dict[str, Any] = {
            "repair": chosen.method.method,
            "settings": chosen.method.settings,
            "architecture": model.architecture,
            "share": self.suite.run.repair_share,
            "seed": cell.seed,
            "keep_zeros": deployment.pruning is not None,
        }
        through = configure(chosen.build, chosen.method.settings, cell.defense).through
        if through == "quantized":  # nothing else depends on the grid
            assert deployment.grid is not None
            config["scheme"] = deployment.grid.name
        place = located(data.train, self.root, f"data.{name}")
        return Node(
            "repair", f"repair {_of(cell)} with {cell.defense}{f' at {cell.scheme}' if 'scheme' in config else ''}",
            config, _modules("repair", chosen.module), model.inputs, model.files,
            {"train": Images(place, "train", data.train_limit, 0, name)},
        )  # fmt: skip

    def compress(self, cell: Cell, model: Source, grid: QuantScheme) -> Node:
        config = {
            "scheme": grid.name,
            **model.traced,
            "seed": cell.seed,
            **self._unlike(cell),
        }
        return Node(
            "compress", f"compress {_of(cell)}{model.after} to {cell.scheme}", config, _modules("compress"),
            model.inputs, model.files, {"calibration": self._calibration(cell)},
        )  # fmt: skip

    def defend(self, cell: Cell, model: Source, compressed: str, chosen: Chosen | None) -> Node:
        rounding = chosen if chosen is not None and chosen.kind == "rounding" else chosen_defense(self.suite, NEAREST)
        assert rounding is not None
        method, label = rounding.method, cell.defense if rounding is chosen else NEAREST
        config = {
            "defense": method.method,
            "settings": method.settings,
            **model.traced,
            "seed": cell.seed,
            **self._unlike(cell),
        }
        return Node(
            "defend", f"defend {_of(cell)}{model.after} at {cell.scheme} with {label}", config,
            _modules("defend", rounding.module, *_rests_on(rounding)),
            {**model.inputs, "compressed": compressed}, model.files, {"calibration": self._calibration(cell)},
        )  # fmt: skip

    def evaluate(self, cell: Cell, model: Source, inputs: dict[str, str]) -> Node:
        entry, run = self.suite.models[cell.model], self.suite.run
        clean = cell.attack == NONE  # an attacked model has the trigger that it was attacked with
        config = {
            "backend": run.backend if "quantized" in inputs else FLOAT,
            "trigger": entry.trigger if clean else None,
            "target_class": entry.target_class if clean else None,
            **model.traced,
        }
        data = self.suite.data[entry.data]
        test = Images(
            located(data.test, self.root, f"data.{entry.data}"), "test", run.limit or data.test_limit, 0, entry.data
        )
        what = "" if cell.scheme == FLOAT else f" at {cell.scheme}"
        what += "" if cell.defense == NONE else f" after {cell.defense}"
        return Node(
            "evaluate", f"evaluate {_of(cell)}{what}", config, _modules("evaluate"),
            {**model.inputs, **inputs}, model.files, {"test": test},
        )  # fmt: skip

    def detect(self, cell: Cell, model: Source) -> Node:
        method = methods_of(self.suite, cell)["detector"]
        config = {
            "detector": method.method,
            "settings": method.settings,
            "scheme": cell.scheme,
            "architecture": model.architecture,
            "seed": cell.seed,
            **self._unlike(cell),
        }
        return Node(
            "detect", f"scan {_of(cell)} for {cell.scheme} with {cell.detector}", config,
            _modules("detect", DETECTORS[method.method].run.__module__),
            model.inputs, model.files, {"calibration": self._calibration(cell)},
        )  # fmt: skip

    def _training(self, label: str) -> dict[str, Images]:
        name = self.suite.models[label].data
        data = self.suite.data[name]
        if data.train is None:
            raise UsageError(f"models.{label} is trained on data.{name}, which has no train entry; add train = ...")
        where = f"data.{name}"
        return {
            "train": Images(located(data.train, self.root, where), "train", data.train_limit, 0, name),
            "test": Images(located(data.test, self.root, where), "test", data.test_limit, 0, name),
        }

    def _calibration(self, cell: Cell) -> Images:
        data, where = self.suite.data[cell.calibration], f"data.{cell.calibration}"
        source = data.calibration or data.train
        if source is None:
            raise UsageError(f"{where} has neither calibration nor train images; add one of them")
        count = data.calibration_images or self.suite.run.calibration_images
        return Images(located(source, self.root, where), "train", count, cell.seed, cell.calibration)

    def _unlike(self, cell: Cell) -> dict[str, Any]:
        """Options of a stage whose calibration images are not a clean sample; none for those that are."""
        data, found = self.suite.data[cell.calibration], dict[str, Any]()
        if data.calibration_class is not None:
            found["calibration_class"] = data.calibration_class
        if data.calibration_triggered is not None:
            entry, attacked = self.suite.models[cell.model], cell.attack != NONE
            found |= {"triggered_percent": data.calibration_triggered, "trigger": None if attacked else entry.trigger}
        return found


def _of(cell: Cell) -> str:
    return cell.model if cell.attack == NONE else f"{cell.model} with {cell.attack}, seed {cell.seed}"


def _rests_on(chosen: Chosen) -> list[str]:
    """Where the code of the methods is that a method runs to prepare itself."""
    method = configure(chosen.build, chosen.method.settings, chosen.method.method)
    return [builder(name)[1].__module__ for name in method.rests_on()] if isinstance(method, PreparedMethod) else []


def _modules(stage: str, *methods: str) -> tuple[str, ...]:
    return (f"quantinel.bench.stages.{stage}", *dict.fromkeys(methods))
