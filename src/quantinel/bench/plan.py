"""From cells to stages: what has to be trained, attacked, compressed, defended and evaluated, each once."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from quantinel.attacks import ATTACKS
from quantinel.bench.cells import FLOAT, NONE, Cell, located, methods_of, victim_folder
from quantinel.bench.defenses import chosen_defense
from quantinel.bench.deployment import parse_deployment
from quantinel.bench.nodes import Node
from quantinel.bench.stage_nodes import Source, StageNodes
from quantinel.bench.suite import Method, Suite
from quantinel.errors import UsageError


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
        self._stages = StageNodes(suite, root)
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
            result = self._add(self._stages.detect(cell, model))
            return Work(cell, result, None, self.ancestors(result))
        floating = self._add(self._stages.evaluate(cell.float_cell, model, {}))
        if cell.scheme == FLOAT:
            return Work(cell, floating, floating, self.ancestors(floating))
        deployment, chosen = parse_deployment(cell.scheme), chosen_defense(self.suite, cell.defense)
        if deployment.pruning is not None:
            model = Source({"model": self._add(self._stages.prune(cell, model, deployment.pruning, chosen))}, {}, None)
        if chosen is not None and chosen.kind == "repair":
            model = Source(
                {"model": self._add(self._stages.repair(cell, model, deployment, chosen))},
                {},
                None,
                f" after {cell.defense}",
            )
        if deployment.training is not None:
            model = Source(
                {"model": self._add(self._stages.train_quantized(cell, model, deployment))}, {}, None, model.after
            )
        if deployment.grid is None:
            result = self._add(self._stages.evaluate(cell, model, {"floating": floating}))
            return Work(cell, result, floating, self.ancestors(result))
        model = dataclasses.replace(model, fold_batch_norm=deployment.fold_batch_norm)
        compressed = self._add(self._stages.compress(cell, model, deployment.grid))
        defended = self._add(self._stages.defend(cell, model, compressed, chosen))
        result = self._add(self._stages.evaluate(cell, model, {"floating": floating, "quantized": defended}))
        return Work(cell, result, floating, self.ancestors(result))

    def _model(self, cell: Cell) -> Source:
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
            source = Source({}, {}, None)
        elif entry.victim is not None:
            source = Source({}, {"model": str(victim_folder(suite, label, self.root))}, None)
        elif entry.weights is not None:
            source = Source({}, {"model": located(entry.weights, self.root, f"models.{label}")}, entry.architecture)
        else:
            source = Source({"model": self._add(self._stages.train(cell))}, {}, None)
        if cell.attack == NONE:
            return source
        lender, trigger = getattr(method, "trigger_of", None), None
        if lender is not None:
            trigger = self._model(dataclasses.replace(cell, model=lender.model, attack=lender.attack)).inputs["model"]
        return Source({"model": self._add(self._stages.attack(cell, source, scratch, trigger))}, {}, None)


def _from_scratch(method: Method) -> bool:
    """Whether an attack begins with random weights; some can be told to take the model's."""
    return ATTACKS[method.method].start == "scratch" and method.settings.get("start_from") != "pretrained"
