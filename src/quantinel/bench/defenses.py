"""Defenses of all kinds under one list of names: roundings, repairs and ways to prune."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from quantinel.bench.suite import Method, Suite
from quantinel.defenses import DEFENSES, PRUNING_DEFENSES, REPAIRS

Kind = Literal["rounding", "repair", "pruning"]
NEAREST = "nearest"
"""How repaired and pruned networks are rounded."""


@dataclass(frozen=True)
class Chosen:
    """A cell's defense.

    Attributes:
        kind: when it acts: while integers are chosen, before that on the float network, or while filters are removed.
        method: registered name, and options that differ from its defaults.
        build: takes its options by name.
    """

    kind: Kind
    method: Method
    build: Callable[..., Any]

    @property
    def module(self) -> str:
        """Where its code is."""
        return self.build.__module__


def defense_names() -> tuple[str, ...]:
    """All registered names, of whatever kind."""
    return *DEFENSES, *REPAIRS, *PRUNING_DEFENSES


def builder(name: str) -> tuple[Kind, Callable[..., Any]]:
    """Kind and constructor of a registered defense."""
    if name in DEFENSES:
        return "rounding", DEFENSES[name].build
    return ("repair", REPAIRS[name].build) if name in REPAIRS else ("pruning", PRUNING_DEFENSES[name].build)


def chosen_defense(suite: Suite, label: str) -> Chosen | None:
    """The defense behind a label; None for "none"."""
    if label == "none":
        return None
    method = suite.defenses.get(label) or Method(method=label)
    kind, build = builder(method.method)
    return Chosen(kind, method, build)
