"""Area under the ROC curve with a 95 % interval that stays honest for few models and for perfect separation.

The area is the share of pairs (a model with an attack, one without) that a score orders rightly, ties counting half
(Hanley & McNeil, Radiology 1982). The interval is method 5 of Newcombe, "Confidence intervals for an effect size
measure based on the Mann-Whitney statistic, part 2", Statistics in Medicine 2006: all A with

    |A^ - A| <= z sqrt(A (1 - A) [1 + (N - 1) ((1 - A) / (2 - A) + A / (1 + A))] / (m n)),   N = (m + n) / 2
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scipy.optimize import brentq
from scipy.stats import norm

from quantinel.errors import InputError


@dataclass(frozen=True)
class Area:
    """An area under the curve, in [0, 1].

    Attributes:
        value: 1 for perfect separation, 0.5 for none.
        low, high: 95 % interval.
        attacked, clean: scores behind it.
    """

    value: float
    low: float
    high: float
    attacked: int
    clean: int


def area_under_curve(attacked: Sequence[float], clean: Sequence[float]) -> Area:
    """The area for scores of which higher is more suspicious.

    Args:
        attacked: scores of models with an attack.
        clean: scores of models without.

    Raises:
        InputError: one of them is empty.
    """
    m, n = len(attacked), len(clean)
    if not m or not n:
        raise InputError(f"{m} scores with an attack and {n} without give no area; score models of both kinds")
    value = sum((a > b) + 0.5 * (a == b) for a in attacked for b in clean) / (m * n)
    z = float(norm.ppf(0.975))

    def beyond(area: float) -> float:
        shape = 1 + ((m + n) / 2 - 1) * ((1 - area) / (2 - area) + area / (1 + area))
        return abs(value - area) - z * math.sqrt(area * (1 - area) * shape / (m * n))

    return Area(value, _end(beyond, value, 0.0), _end(beyond, value, 1.0), m, n)


def _end(beyond: Callable[[float], float], value: float, edge: float) -> float:
    """Where the interval ends between the value and an edge of [0, 1]."""
    if value == edge:
        return edge
    inside = value + (edge - value) * 1e-9
    return float(brentq(beyond, inside, edge)) if beyond(inside) < 0 else value
