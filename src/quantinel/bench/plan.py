"""From cells to stages: what has to be trained, attacked, compressed, defended and evaluated, each once."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from quantinel.attacks import ATTACKS
from quantinel.bench.cells import FLOAT, NONE, Cell, entries_of, located, methods_of, victim_folder
from quantinel.bench.deployment import Deployment, parse_deployment
from quantinel.bench.images import Images
from quantinel.bench.nodes import Node
from quantinel.bench.suite import Method, Suite
from quantinel.defenses import DEFENSES
from quantinel.detectors import DETECTORS
from quantinel.errors import UsageError
from quantinel.quantization.pruning import PruningScheme
from quantinel.quantization.scheme import QuantScheme, parse_scheme


@dataclass(frozen=True)
class Work:
    """The nodes behind one cell.

    Attributes:
        cell: the cell.
        result: id of the node that gives its figures.
        floating: id of the evaluation of the float model; None for detectors.
        chain: ids of all nodes behind it, in the order of the stages.
    """

    cell: Cell
    result: str
    floating: str | None
    chain: tuple[str, ...]


class Plan:
    """Nodes of a suite by id, upstream before downstream, and the work of every cell.

    Args:
        suite: validated.
        cells: which of its cells to run.
        root: data root, or None.
    """

    def __init__(self, suite: Suite, cells: list[Cell], root: Path | None) -> None:
        self.suite, self.root = suite, root
        self.nodes: dict[str, Node] = {}
        self.work = [self._of_cell(cell) for cell in cells]

    def ancestors(self, node: str) -> tuple[str, ...]:
        """Ids of all nodes upstream of ``node`` and of itself, upstream first."""
        found: dict[str, None] = {}
        for upstream in self.nodes[node].inputs.values():
            found.update(dict.fromkeys(self.ancestors(upstream)))
        found[node] = None
        return tuple(found)

    def _add(self, node: Node) -> str:
        node = dataclasses.replace(node, config={**node.config, "threads": self.suite.run.threads})
        self.nodes.setdefault(node.id, node)
        return node.id

    def _of_cell(self, cell: Cell) -> Work:
        model = self._model(cell)
        if cell.detector is not None:
            result = self._add(self._detect(cell, model))
            return Work(cell, result, None, self.ancestors(result))
        floating = self._add(self._evaluate(cell.float_cell, model, {}))
        if cell.scheme == FLOAT:
            return Work(cell, floating, floating, self.ancestors(floating))
        deployment = parse_deployment(cell.scheme)
        if deployment.pruning is not None:
            model = _Subject({"model": self._add(self._prune(cell, model, deployment.pruning))}, {}, None)
        if deployment.training is not None:
            model = _Subject({"model": self._add(self._train_quantized(cell, model, deployment))}, {}, None)
        if deployment.grid is None:
            result = self._add(self._evaluate(cell, model, {"floating": floating}))
            return Work(cell, result, floating, self.ancestors(result))
        compressed = self._add(self._compress(cell, model, deployment.grid))
        defended = self._add(self._defend(cell, model, compressed))
        result = self._add(self._evaluate(cell, model, {"floating": floating, "quantized": defended}))
        return Work(cell, result, floating, self.ancestors(result))

    def _model(self, cell: Cell) -> _Subject:
        """The float model of a cell: an external one, a trained one, or an attacked one."""
        suite = self.suite
        entry, label = suite.models[cell.model], cell.model
        method = methods_of(suite, cell)["attack"]
        scratch = cell.attack != NONE and _from_scratch(method)
        if scratch:
            if entry.architecture is None:
                raise UsageError(
                    f"attack {cell.attack} starts from random weights and models.{label} is a victim directory; give "
                    "a model with an architecture"
                )
            subject = _Subject({}, {}, None)
        elif entry.victim is not None:
            subject = _Subject({}, {"model": str(victim_folder(suite, label, self.root))}, None)
        elif entry.weights is not None:
            path = located(entry.weights, self.root, f"models.{label}")
            subject = _Subject({}, {"model": path}, entry.architecture)
        else:
            node = Node(
                "train", f"train {label}, seed {cell.seed}",
                {"architecture": entry.architecture, "settings": entry.training, "seed": cell.seed,
                 "data": entry.data},
                ("quantinel.bench.stages.train",), images=self._training(label),
            )  # fmt: skip
            subject = _Subject({"model": self._add(node)}, {}, None)
        if cell.attack == NONE:
            return subject
        config = {
            "attack": method.method,
            "settings": method.settings,
            "schemes": [parse_scheme(name).name for name in getattr(method, "schemes", ())],
            "seed": cell.seed,
            "data": entry.data,
        }
        config["architecture"] = entry.architecture if scratch else subject.architecture
        node = Node(
            "attack", f"attack {label} with {cell.attack}, seed {cell.seed}", config,
            _modules("attack", ATTACKS[method.method].config.__module__),
            subject.inputs, subject.files, self._training(label),
        )  # fmt: skip
        return _Subject({"model": self._add(node)}, {}, None)

    def _prune(self, cell: Cell, model: _Subject, scheme: PruningScheme) -> Node:
        config: dict[str, Any] = {"scheme": scheme.name, "architecture": model.architecture}
        images = {}
        if scheme.searched:  # nothing else depends on images or the seed
            config |= {"seed": cell.seed, **self._poisoned(cell)}
            images = {"calibration": self._calibration(cell)}
        return Node(
            "prune", f"prune {_of(cell)} with {scheme.name}", config, _modules("prune"),
            model.inputs, model.files, images,
        )  # fmt: skip

    def _train_quantized(self, cell: Cell, model: _Subject, deployment: Deployment) -> Node:
        config = {"scheme": deployment.name, "architecture": model.architecture, "seed": cell.seed}
        images = {"train": self._training(cell.model)["train"]}
        return Node(
            "qat",
            f"train {_of(cell)} for {deployment.name}",
            config,
            _modules("qat"),
            model.inputs,
            model.files,
            images,
        )

    def _compress(self, cell: Cell, model: _Subject, grid: QuantScheme) -> Node:
        config = {
            "scheme": grid.name,
            "architecture": model.architecture,
            "seed": cell.seed,
            **self._poisoned(cell),
        }
        return Node(
            "compress", f"compress {_of(cell)} to {cell.scheme}", config, _modules("compress"),
            model.inputs, model.files, {"calibration": self._calibration(cell)},
        )  # fmt: skip

    def _defend(self, cell: Cell, model: _Subject, compressed: str) -> Node:
        method = methods_of(self.suite, cell)["defense"]
        config = {
            "defense": method.method,
            "settings": method.settings,
            "architecture": model.architecture,
            "seed": cell.seed,
            **self._poisoned(cell),
        }
        return Node(
            "defend", f"defend {_of(cell)} at {cell.scheme} with {cell.defense}", config,
            _modules("defend", DEFENSES[method.method].build.__module__),
            {**model.inputs, "compressed": compressed}, model.files, {"calibration": self._calibration(cell)},
        )  # fmt: skip

    def _evaluate(self, cell: Cell, model: _Subject, inputs: dict[str, str]) -> Node:
        entry, run = self.suite.models[cell.model], self.suite.run
        clean = cell.attack == NONE  # an attacked model has the trigger that it was attacked with
        config = {
            "backend": FLOAT if cell.defense == NONE else run.backend,
            "trigger": entry.trigger if clean else None,
            "target_class": entry.target_class if clean else None,
            "architecture": model.architecture,
        }
        data = self.suite.data[entry.data]
        test = Images(located(data.test, self.root, f"data.{entry.data}"), "test", run.limit, 0, entry.data)
        what = "" if cell.scheme == FLOAT else f" at {cell.scheme}"
        what += "" if cell.defense == NONE else f" after {cell.defense}"
        return Node(
            "evaluate", f"evaluate {_of(cell)}{what}", config, _modules("evaluate"),
            {**model.inputs, **inputs}, model.files, {"test": test},
        )  # fmt: skip

    def _detect(self, cell: Cell, model: _Subject) -> Node:
        method = methods_of(self.suite, cell)["detector"]
        config = {
            "detector": method.method,
            "settings": method.settings,
            "scheme": cell.scheme,
            "architecture": model.architecture,
            "seed": cell.seed,
            **self._poisoned(cell),
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
            "test": Images(located(data.test, self.root, where), "test", None, 0, name),
        }

    def _calibration(self, cell: Cell) -> Images:
        data, where = self.suite.data[cell.calibration], f"data.{cell.calibration}"
        source = data.calibration or data.train
        if source is None:
            raise UsageError(f"{where} has neither calibration nor train images; add one of them")
        count = data.calibration_images or self.suite.run.calibration_images
        return Images(located(source, self.root, where), "train", count, cell.seed, cell.calibration)

    def _poisoned(self, cell: Cell) -> dict[str, Any]:
        """Options of a stage that reads calibration images with triggers; none for clean ones."""
        percent = self.suite.data[cell.calibration].calibration_triggered
        if percent is None:
            return {}
        entry, attacked = self.suite.models[cell.model], cell.attack != NONE
        return {"triggered_percent": percent, "trigger": None if attacked else entry.trigger}


@dataclass(frozen=True)
class _Subject:
    """A float model as stages get it: an upstream node or external files, with an architecture where needed."""

    inputs: dict[str, str]
    files: dict[str, str]
    architecture: str | None


def _from_scratch(method: Method) -> bool:
    """Whether an attack begins with random weights; some can be told to take the model's."""
    return ATTACKS[method.method].start == "scratch" and method.settings.get("start_from") != "pretrained"


def _of(cell: Cell) -> str:
    return cell.model if cell.attack == NONE else f"{cell.model} with {cell.attack}, seed {cell.seed}"


def _modules(stage: str, *methods: str) -> tuple[str, ...]:
    return (f"quantinel.bench.stages.{stage}", *dict.fromkeys(methods))


def resolved(suite: Suite, cell: Cell) -> dict[str, Any]:
    """The cell's configuration without places: what ``config_sha256`` of a row is taken over."""
    return {
        "cell": cell.id,
        "model": suite.models[cell.model].model_dump(mode="json"),
        "data": _described(suite.data[suite.models[cell.model].data]),
        "calibration": _described(suite.data[cell.calibration]),
        "run": suite.run.model_dump(mode="json", exclude={"seeds"}),
        **{
            kind: None if entry is None else entry.model_dump(mode="json")
            for kind, entry in entries_of(suite, cell).items()
        },
    }


_LATER = ("calibration_images", "calibration_triggered")
"""Options that older rows know nothing of: left out where they are not used, so that those rows stay comparable."""


def _described(entry: BaseModel) -> dict[str, Any]:
    values = entry.model_dump(mode="json")
    return {name: value for name, value in values.items() if name not in _LATER or value is not None}
