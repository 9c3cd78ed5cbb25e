"""ROC curves of detectors from the scores in rows, and the area under them with its interval."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from quantinel.bench.auc import Area, area_under_curve
from quantinel.bench.detection import score_of as score_of_row
from quantinel.bench.site.entries import Entry


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
    def area(self) -> Area:
        """Area under the curve with its interval."""
        return area_under_curve(self.positives, self.negatives)


def _share_above(scores: Sequence[float], threshold: float) -> float:
    return sum(score >= threshold for score in scores) / len(scores)


def roc_curves(entries: Sequence[Entry]) -> list[Roc]:
    """One curve for every detector and scheme that has scores, in the order of the suite.

    Attacks that made no victim, and backdoors that are awake in the float model, are neither kind.
    """
    scores: dict[tuple[str, str], tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for entry in entries:
        if entry.measured is None or entry.role == "control":
            continue
        score = score_of(entry)
        if score is not None:
            positives, negatives = scores[entry.method, entry.cell.calibrated]
            (positives if entry.role == "victim" else negatives).append(score)
    return [
        Roc(detector, scheme, tuple(sorted(positives)), tuple(sorted(negatives)))
        for (detector, scheme), (positives, negatives) in scores.items()
    ]


def score_of(entry: Entry) -> float | None:
    """A detector's score, if it is a finite number."""
    try:
        score = None if entry.row is None else score_of_row(entry.row)
    except ValueError:  # text
        return None
    return score if score is not None and math.isfinite(score) else None
