"""A figure of the model under suspicion against the same figure of its control copies."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from quantinel.detectors.significance import p_of_excess
from quantinel.inversion.budget import Budget

T = TypeVar("T")

_LEAST_P = 1e-300
FEWEST = 5
"""Control copies without which nothing can be said; they are made even when time is up."""


@dataclass(frozen=True)
class Comparison:
    """One new observation against control observations.

    Attributes:
        z: distance from the controls' mean in units of their standard deviation.
        p_value: one-sided, of a value as large or larger if it were one more control: Student's t for a new
            observation of a normal law.
        rank_p_value: the same without the normal law; never below 1 / (controls + 1).
    """

    z: float
    p_value: float
    rank_p_value: float


def compare(value: float, controls: Sequence[float], least_spread: float = 0.0) -> Comparison:
    """Compare one observation with at least two controls.

    Args:
        value: of the model.
        controls: of its copies.
        least_spread: a smaller standard deviation of the controls is not believed.
    """
    observed = torch.tensor(controls, dtype=torch.float64)
    count, excess = len(controls), value - float(observed.mean())
    spread = max(float(observed.std()), least_spread, 1e-12 * max(1.0, abs(value)))
    z = excess / spread
    tail = p_of_excess(z / math.sqrt(1.0 + 1.0 / count), count)
    return Comparison(z, tail, (1 + sum(control >= value for control in controls)) / (count + 1))


def draw(make: Callable[[], T], count: int, budget: Budget, *, fewest: int = FEWEST) -> tuple[list[T], list[str]]:
    """Make up to ``count`` controls, fewer when the time is up.

    Args:
        make: one control.
        count: as many as wanted.
        budget: of the detector.
        fewest: made even when the time is up.

    Returns:
        The controls, at least the smaller of ``count`` and ``fewest``, and a note for every cut.
    """
    made: list[T] = []
    while len(made) < count and (len(made) < fewest or budget.remaining() > 0):
        made.append(make())
    if len(made) == count:
        return made, []
    return made, [f"{len(made)} of {count} control copies in the time that was left; small effects can be missed"]


def smallest(p_values: Sequence[float]) -> float:
    """The smallest of several p-values, corrected for their number (Bonferroni)."""
    return min(1.0, len(p_values) * min(p_values))


def surprise(p_value: float) -> float:
    """-log10 of a p-value: the score of detectors whose figures are not comparable between models otherwise."""
    return max(0.0, -math.log10(max(p_value, _LEAST_P)))
