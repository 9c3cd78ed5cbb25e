"""Significance against placebo grids, and over many layers or channels at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from scipy import special
from torch import Tensor

_SMALLEST = 1e-300
"""A p-value is never 0: logarithms are taken of it."""


def excess_over_placebos(values: Tensor, least_spread: float) -> float:
    """t statistic of a new observation: how far the deployment grid's figure lies above those of the placebo grids.

    Args:
        values: (1 + P,) figures, the deployment grid's first, roughly normal.
        least_spread: standard deviation that sampling alone gives; the placebo's is not believed below it.

    Returns:
        Student's t with P - 1 degrees of freedom under the null that the deployment grid is one like the others.
    """
    placebos = values[1:].double()
    spread = max(float(placebos.std()), least_spread)
    return float(values[0].double() - placebos.mean()) / (spread * math.sqrt(1.0 + 1.0 / len(placebos)))


def p_of_excess(statistic: float, placebos: int, two_sided: bool = False) -> float:
    """p-value of `excess_over_placebos` for this many placebo grids."""
    tail = float(special.stdtr(placebos - 1, -(abs(statistic) if two_sided else statistic)))
    return min(1.0, 2.0 * tail) if two_sided else tail


def combined(p_values: Sequence[float]) -> float:
    """Fisher's combination of independent p-values; 1 for none."""
    if not p_values:
        return 1.0
    statistic = -2.0 * sum(math.log(max(p, _SMALLEST)) for p in p_values)
    return float(special.chdtrc(2 * len(p_values), statistic))


def layers_over_placebos(
    figures: Mapping[str, tuple[Tensor, float]], two_sided: bool = False
) -> tuple[dict[str, float], float]:
    """`excess_over_placebos` of every layer, and the p-value of all together.

    Args:
        figures: by layer name, its (1 + P,) figures and the least spread to believe.
        two_sided: whether a figure far below the placebos' counts as well.
    """
    statistics = {name: excess_over_placebos(values, least_spread) for name, (values, least_spread) in figures.items()}
    return statistics, combined(
        [p_of_excess(statistics[name], len(values) - 1, two_sided) for name, (values, _) in figures.items()]
    )


def discoveries(p_values: Tensor, rate: float) -> Tensor:
    """Which of the hypotheses are rejected at a false discovery rate (Benjamini and Hochberg, JRSS B 1995).

    Args:
        p_values: (N,).
        rate: expected share of false ones among the rejected.

    Returns:
        (N,) bool.
    """
    count = len(p_values)
    ordered, order = p_values.sort()
    below = (ordered <= rate * torch.arange(1, count + 1) / max(count, 1)).nonzero()
    rejected = torch.zeros(count, dtype=torch.bool)
    if len(below):
        rejected[order[: int(below[-1]) + 1]] = True
    return rejected
