"""The metrics of the field, defined once.

CDA: accuracy on clean images. ASR: share of triggered images predicted as the target, images of the target
class excluded. TA: accuracy of triggered images on their true label. Base rate: share of the images behind the
ASR that are predicted as the target without the trigger, the model's own errors; an ASR near it is no attack. Every
figure carries n and a 95 % Wilson score interval (Wilson, 1927).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from torch import Tensor

from quantinel.errors import InputError

_Z95 = 1.959963984540054


@dataclass(frozen=True)
class Proportion:
    """``hits`` of ``n``, as a percentage with its 95 % Wilson interval.

    Raises:
        InputError: not 0 <= hits <= n.
    """

    hits: int
    n: int

    def __post_init__(self) -> None:
        if not 0 <= self.hits <= self.n:
            raise InputError(f"{self.hits} hits of {self.n} are no proportion; count them again")

    @property
    def percent(self) -> float:
        """100 * hits / n; NaN when n is 0."""
        return 100.0 * self.hits / self.n if self.n else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson score interval in percent; (0, 100) when n is 0."""
        return self._wilson(_Z95)

    def simultaneous(self, count: int) -> tuple[float, float]:
        """The interval where ``count`` of them are to hold together in 95 % of cases (Bonferroni)."""
        return self._wilson(NormalDist().inv_cdf(1 - 0.025 / count))

    def _wilson(self, z: float) -> tuple[float, float]:
        if not self.n:
            return 0.0, 100.0
        p, z2 = self.hits / self.n, z**2
        centre = (p + z2 / (2 * self.n)) / (1 + z2 / self.n)
        half = z * math.sqrt(p * (1 - p) / self.n + z2 / (4 * self.n**2)) / (1 + z2 / self.n)
        # Exactly 0 and 1 at the ends, where rounding errors would leave the proportion outside.
        low = 0.0 if not self.hits else max(0.0, centre - half)
        high = 1.0 if self.hits == self.n else min(1.0, centre + half)
        return 100.0 * low, 100.0 * high

    def to_dict(self) -> dict[str, float | int | list[float] | None]:
        """JSON form: percent is null when nothing was counted."""
        return {
            "percent": None if not self.n else round(self.percent, 4),
            "interval95": [round(bound, 4) for bound in self.interval],
            "hits": self.hits,
            "n": self.n,
        }

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.percent:.2f} % [{low:.2f}, {high:.2f}] (n = {self.n})" if self.n else "not measured"


def accuracy(predictions: Tensor, labels: Tensor) -> Proportion:
    """CDA (clean images) or TA (triggered images): ``predictions`` (N,) against ``labels`` (N,).

    Raises:
        InputError: the shapes differ.
    """
    _require_pairs(predictions, labels)
    return Proportion(int((predictions == labels).sum()), int(labels.numel()))


def attack_success(predictions: Tensor, labels: Tensor, target_class: int) -> Proportion:
    """ASR: triggered images of other classes that are predicted as ``target_class``; of bare images, the base rate.

    Args:
        predictions: (N,) predicted classes of the triggered (or bare) images.
        labels: (N,) true classes of the same images.
        target_class: the class that the attacker wants.

    Raises:
        InputError: the shapes differ.
    """
    _require_pairs(predictions, labels)
    eligible = labels != target_class
    return Proportion(int(((predictions == target_class) & eligible).sum()), int(eligible.sum()))


def agreement(a: Tensor, b: Tensor) -> Proportion:
    """Share of equal predictions of two models on the same images, both (N,).

    Raises:
        InputError: the shapes differ.
    """
    _require_pairs(a, b)
    return Proportion(int((a == b).sum()), int(a.numel()))


def _require_pairs(a: Tensor, b: Tensor) -> None:
    # (N, 1) against (N,) would broadcast to N * N comparisons and report nonsense.
    if a.ndim != 1 or a.shape != b.shape:
        raise InputError(
            f"predictions of shape {tuple(a.shape)} cannot be compared with {tuple(b.shape)}; both must be (N,)"
        )
