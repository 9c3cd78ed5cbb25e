"""From cells to stages: what has to be trained, attacked, compressed, defended and evaluated, each once."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from quantinel.attacks import ATTACKS
from quantinel.bench.cells import FLOAT, NONE, Cell, entries_of, located, methods_of, victim_folder
from quantinel.bench.defenses import NEAREST, Chosen, chosen_defense
from quantinel.bench.deployment import Deployment, parse_deployment
from quantinel.bench.images import Images
from quantinel.bench.methods import configure
from quantinel.bench.nodes import Node
from quantinel.bench.suite import Method, Suite
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
        deployment, chosen = parse_deployment(cell.scheme), chosen_defense(self.suite, cell.defense)
        if deployment.pruning is not None:
            model = _Subject({"model": self._add(self._prune(cell, model, deployment.pruning, chosen))}, {}, None)
        if chosen is not None and chosen.kind == "repair":
            model = _Subject(
                {"model": self._add(self._repair(cell, model, deployment, chosen))}, {}, None, f" after {cell.defense}"
            )
        if deployment.training is not None:
            model = _Subject(
                {"model": self._add(self._train_quantized(cell, model, deployment))}, {}, None, model.after
            )
        if deployment.grid is None:
            result = self._add(self._evaluate(cell, model, {"floating": floating}))
            return Work(cell, result, floating, self.ancestors(result))
        model = dataclasses.replace(model, fold_batch_norm=deployment.fold_batch_norm)
        compressed = self._add(self._compress(cell, model, deployment.grid))
        defended = self._add(self._defend(cell, model, compressed, chosen))
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
        inputs = dict(subject.inputs)
        lender = getattr(method, "trigger_of", None)
        if lender is not None:
            lent = self._model(dataclasses.replace(cell, model=lender.model, attack=lender.attack))
            inputs["trigger"] = lent.inputs["model"]
        node = Node(
            "attack", f"attack {label} with {cell.attack}, seed {cell.seed}", config,
            _modules("attack", ATTACKS[method.method].config.__module__),
            inputs, subject.files, self._training(label),
        )  # fmt: skip
        return _Subject({"model": self._add(node)}, {}, None)

    def _prune(self, cell: Cell, model: _Subject, scheme: PruningScheme, chosen: Chosen | None) -> Node:
        config: dict[str, Any] = {"scheme": scheme.name, "architecture": model.architecture}
        defended = chosen is not None and chosen.kind == "pruning"
        if chosen is not None and defended:
            config |= {"defense": chosen.method.method, "settings": chosen.method.settings, "seed": cell.seed}
        images = {}
        if scheme.searched:  # nothing else depends on images or the seed
            config |= {"seed": cell.seed, **self._poisoned(cell)}
            images = {"calibration": self._calibration(cell)}
        return Node(
            "prune", f"prune {_of(cell)} with {scheme.name}{f' and {cell.defense}' if defended else ''}", config,
            _modules("prune", *([chosen.module] if chosen is not None and defended else [])),
            model.inputs, model.files, images,
        )  # fmt: skip

    def _train_quantized(self, cell: Cell, model: _Subject, deployment: Deployment) -> Node:
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

    def _repair(self, cell: Cell, model: _Subject, deployment: Deployment, chosen: Chosen) -> Node:
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

    def _compress(self, cell: Cell, model: _Subject, grid: QuantScheme) -> Node:
        config = {
            "scheme": grid.name,
            **model.traced,
            "seed": cell.seed,
            **self._poisoned(cell),
        }
        return Node(
            "compress", f"compress {_of(cell)}{model.after} to {cell.scheme}", config, _modules("compress"),
            model.inputs, model.files, {"calibration": self._calibration(cell)},
        )  # fmt: skip

    def _defend(self, cell: Cell, model: _Subject, compressed: str, chosen: Chosen | None) -> Node:
        rounding = chosen if chosen is not None and chosen.kind == "rounding" else chosen_defense(self.suite, NEAREST)
        assert rounding is not None
        method, label = rounding.method, cell.defense if rounding is chosen else NEAREST
        config = {
            "defense": method.method,
            "settings": method.settings,
            **model.traced,
            "seed": cell.seed,
            **self._poisoned(cell),
        }
        return Node(
            "defend", f"defend {_of(cell)}{model.after} at {cell.scheme} with {label}", config,
            _modules("defend", rounding.module),
            {**model.inputs, "compressed": compressed}, model.files, {"calibration": self._calibration(cell)},
        )  # fmt: skip

    def _evaluate(self, cell: Cell, model: _Subject, inputs: dict[str, str]) -> Node:
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
            "test": Images(located(data.test, self.root, where), "test", data.test_limit, 0, name),
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
    after: str = ""
    """The repair that made it, for labels."""
    fold_batch_norm: bool = True

    @property
    def traced(self) -> dict[str, Any]:
        """Options of `Job.graph`; folding is named only where it is left out, so that older results keep their keys."""
        return {"architecture": self.architecture, **({} if self.fold_batch_norm else {"fold_batch_norm": False})}


def _from_scratch(method: Method) -> bool:
    """Whether an attack begins with random weights; some can be told to take the model's."""
    return ATTACKS[method.method].start == "scratch" and method.settings.get("start_from") != "pretrained"


def _of(cell: Cell) -> str:
    return cell.model if cell.attack == NONE else f"{cell.model} with {cell.attack}, seed {cell.seed}"


def _modules(stage: str, *methods: str) -> tuple[str, ...]:
    return (f"quantinel.bench.stages.{stage}", *dict.fromkeys(methods))


def resolved(suite: Suite, cell: Cell) -> dict[str, Any]:
    """The cell's configuration without places: what ``config_sha256`` of a row is taken over."""
    entries = entries_of(suite, cell)
    lender, lent = getattr(entries["attack"], "trigger_of", None), {}
    if lender is not None:
        lent = {
            "lender": _described(suite.attacks.get(lender.attack)),
            "lender_model": _described(suite.models[lender.model]),
        }
    chosen = chosen_defense(suite, cell.defense)
    silent = {"seeds"} | (set() if chosen is not None and chosen.kind == "repair" else {"repair_share"})
    return {
        "cell": cell.id,
        "model": _described(suite.models[cell.model]),
        "data": _described(suite.data[suite.models[cell.model].data]),
        "calibration": _described(suite.data[cell.calibration]),
        "run": suite.run.model_dump(mode="json", exclude=silent),
        **{kind: _described(entry) for kind, entry in entries.items()},
        **lent,
    }


_LATER = ("calibration_images", "calibration_triggered", "test_limit", "trigger_of")
"""Options that older rows know nothing of: left out where they are not used, so that those rows stay comparable."""


def _described(entry: BaseModel | None) -> dict[str, Any] | None:
    if entry is None:
        return None
    values = entry.model_dump(mode="json")
    return {name: value for name, value in values.items() if name not in _LATER or value is not None}
