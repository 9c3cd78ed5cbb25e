"""ROC curves of detectors from the scores in rows, and the area under them with its interval."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from quantinel.bench.site.entries import Entry

_Z95 = 1.959963984540054


@dataclass(frozen=True)
class Roc:
    """How well one detector tells victims from clean models on one grid.

    Attributes:
        detector, scheme: labels.
        positives, negatives: scores of victims and of clean models; higher is more suspicious.
    """

    detector: str
    scheme: str
    positives: tuple[float, ...]
    negatives: tuple[float, ...]

    @property
    def complete(self) -> bool:
        """Whether there are both kinds; there is no curve without."""
        return bool(self.positives and self.negatives)

    @property
    def missing(self) -> str:
        """Why there is no curve."""
        lacks = "clean model" if self.positives else "victim"
        return f"{self.detector} at {self.scheme}: no {lacks} was scanned, and a ROC curve needs both kinds."

    @property
    def points(self) -> list[tuple[float, float]]:
        """(false-positive rate, true-positive rate) from (0, 0) to (1, 1); equal scores are one step."""
        found = [(0.0, 0.0)]
        for threshold in sorted({*self.positives, *self.negatives}, reverse=True):
            found.append((_share_above(self.negatives, threshold), _share_above(self.positives, threshold)))
        return found

    @property
    def auc(self) -> float:
        """Probability that a victim scores higher than a clean model; ties count half."""
        wins = sum(
            1.0 if positive > negative else 0.5 if positive == negative else 0.0
            for positive in self.positives
            for negative in self.negatives
        )
        return wins / (len(self.positives) * len(self.negatives))

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the area (Newcombe 2006, method 5): not of width 0 where no score is misplaced."""
        return _bound(self.auc, len(self.positives), len(self.negatives), lower=True), _bound(
            self.auc, len(self.positives), len(self.negatives), lower=False
        )


def _share_above(scores: Sequence[float], threshold: float) -> float:
    return sum(score >= threshold for score in scores) / len(scores)


def _variance(area: float, m: int, n: int) -> float:
    """Hanley and McNeil's variance with both sample sizes replaced by their mean (Newcombe's method 5)."""
    half = (m + n) / 2 - 1
    return area * (1 - area) * (1 + half * (1 - area) / (2 - area) + half * area / (1 + area)) / (m * n)


def _bound(area: float, m: int, n: int, *, lower: bool) -> float:
    """The area whose own 95 % range just reaches the observed one, by bisection."""
    inner, outer = area, 0.0 if lower else 1.0
    for _ in range(60):
        middle = (inner + outer) / 2
        if abs(area - middle) <= _Z95 * math.sqrt(_variance(middle, m, n)):
            inner = middle
        else:
            outer = middle
    return inner


def roc_curves(entries: Sequence[Entry]) -> list[Roc]:
    """One curve for every detector and scheme that has scores, in the order of the suite.

    Victims whose gate failed count as neither kind.
    """
    scores: dict[tuple[str, str], tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for entry in entries:
        if entry.measured is None:
            continue
        score = score_of(entry)
        if score is not None:
            positives, negatives = scores[entry.method, entry.cell.scheme]
            (positives if entry.attacked else negatives).append(score)
    return [
        Roc(detector, scheme, tuple(sorted(positives)), tuple(sorted(negatives)))
        for (detector, scheme), (positives, negatives) in scores.items()
    ]


def score_of(entry: Entry) -> float | None:
    """A detector's score, if it is a finite number."""
    score = None if entry.row is None else entry.row.extra.get("score")
    if isinstance(score, int | float) and math.isfinite(score):
        return float(score)
    return None
