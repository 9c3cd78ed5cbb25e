"""From what a detector found to a check: pass and fail only against a threshold with a measured error rate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from quantinel.audit.rules import on_grid, rule_of
from quantinel.audit.scan_report import CheckStatus, ClassScore, LayerScore, ScanCheck
from quantinel.audit.thresholds import Threshold, Thresholds
from quantinel.detectors.subject import Detection

UNUSUAL_P = 0.001
"""An uncalibrated p-value that warns: a scan looks at several."""
UNUSUAL_SCORES: Mapping[str, float] = {"weight-residuals": 0.02}
"""Uncalibrated scores that warn. Of natural weights 1 % lie at a boundary: three times that is an excess of 2 %."""

INFORMATION = frozenset(["on-grid"])
"""Detectors that say how a model was made; uncalibrated they do not warn, however unlikely their null hypothesis is."""

_UNCALIBRATED = "uncalibrated"


@dataclass(frozen=True)
class Place:
    """Where a check stands in a scan.

    Attributes:
        detector: name of the detector or built-in check.
        title: a sentence for people.
        target: scheme, pruning scheme or file.
        required: whether there is no PASS without it.
    """

    detector: str
    title: str
    target: str
    required: bool

    @property
    def id(self) -> str:
        """Unique in a report."""
        return f"{self.target}/{self.detector}"

    def check(self, status: CheckStatus, **fields: object) -> ScanCheck:
        """The check with its outcome."""
        return ScanCheck.model_validate(
            {
                "id": self.id,
                "rule": rule_of(self.detector).id,
                "title": self.title,
                "detector": self.detector,
                "target": self.target,
                "required": self.required,
                "status": status,
                **fields,
            }
        )


@dataclass(frozen=True)
class Circumstances:
    """Under what conditions a detector ran.

    Attributes:
        weight_bits: of the grid.
        images: how many it was given; 0 for detectors that need none.
        cut_short: it had less time than it wanted and says so in its notes.
        class_names: by class, or None.
        seconds: time.
        prunings: of how many prunings the scan asks the detector, each a check of its own; 1 where it asks of none.
    """

    weight_bits: int
    images: int = 0
    cut_short: bool = False
    class_names: Sequence[str] | None = None
    seconds: float = 0.0
    prunings: int = 1


def class_name(index: int, names: Sequence[str] | None) -> str:
    """Name of a class, or its number."""
    return names[index] if names is not None and 0 <= index < len(names) else str(index)


def judge(place: Place, found: Detection, thresholds: Thresholds, given: Circumstances) -> ScanCheck:
    """Hold a detector's figure against its threshold.

    A figure beyond the threshold fails, one within it passes. It stays undecided where there is no threshold for this
    detector and number of bits, where the detector had fewer images than its threshold was measured with, where it was
    cut short and found nothing, or where the figure is no number. A p-value counts times the number of prunings that
    were asked about (Bonferroni), as in the rows that its threshold was fitted on.
    """
    if found.p_value is not None and given.prunings > 1:
        found = replace(found, p_value=min(1.0, given.prunings * found.p_value))
    entry = thresholds.find(place.detector, given.weight_bits)
    statistic = "score" if entry is None else entry.statistic
    value = found.p_value if statistic == "p_value" else found.score
    status, reason = _status(place.detector, value, entry, given)
    return place.check(
        status,
        judged_by="nothing" if entry is None else "calibration",
        statistic=statistic,
        value=_finite(value),
        p_value=_finite(found.p_value),
        threshold=None if entry is None else entry.threshold,
        false_positives=None if entry is None else entry.false_positives,
        fitted_on=[] if entry is None else entry.fitted_on,
        alarm=status == "undecided" and _unusual(place.detector, found, entry),
        suspect_class=None if found.suspect_class is None else class_name(found.suspect_class, given.class_names),
        reason=reason,
        detail=_detail(found, entry, given),
        statistics={name: float(figure) for name, figure in found.statistics.items() if math.isfinite(figure)},
        by_class=[
            ClassScore(index=index, name=class_name(index, given.class_names), score=score)
            for index, score in sorted(found.by_class.items()) if math.isfinite(score)
        ],
        by_layer=[LayerScore(name=name, score=score) for name, score in found.by_layer.items() if math.isfinite(score)],
        notes=[*found.remarks, *found.notes],
        seconds=round(given.seconds, 3),
    )  # fmt: skip


def _status(
    detector: str, value: float | None, entry: Threshold | None, given: Circumstances
) -> tuple[CheckStatus, str]:
    """The outcome, and why it is undecided."""
    if entry is None:
        where = f" for {given.weight_bits} bits" if on_grid(detector) else ""
        return "undecided", (
            f"{_UNCALIBRATED}: no threshold with a measured false-positive rate{where}; fit one "
            "(docs/scan.md) and give it with --thresholds"
        )
    if value is None or not math.isfinite(value):
        return "undecided", f"the {_words(entry)} is no number on this model"
    if given.images < entry.images:
        return "undecided", f"its threshold was measured with {entry.images} images, it had {given.images}; give more"
    if entry.exceeded_by(value):
        return "fail", ""
    if given.cut_short:
        return "undecided", "it was cut short by the time budget and found nothing; give a longer --budget"
    return "pass", ""


def _unusual(detector: str, found: Detection, entry: Threshold | None) -> bool:
    """Whether a figure that could not be judged is worth a warning."""
    if entry is not None:
        value = found.p_value if entry.statistic == "p_value" else found.score
        return value is not None and math.isfinite(value) and entry.exceeded_by(value)
    if detector in INFORMATION:
        return False
    if found.p_value is not None:
        return found.p_value <= UNUSUAL_P
    return found.score > UNUSUAL_SCORES.get(detector, math.inf)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _words(entry: Threshold) -> str:
    return "p-value" if entry.statistic == "p_value" else "score"


def _detail(found: Detection, entry: Threshold | None, given: Circumstances) -> str:
    parts = [f"score {found.score:.4g}"]
    if found.p_value is not None:
        together = f" (times {given.prunings} prunings)" if given.prunings > 1 else ""
        parts.append(f"p-value {found.p_value:.3g}{together}")
    if entry is not None:
        rate = entry.false_positives
        side = "above" if entry.statistic == "score" else "at or below"
        parts.append(
            f"suspicious {side} {entry.threshold:.4g} ({_words(entry)}), where {rate.hits} of {rate.n} harmless models "
            f"lie, 95 % interval {rate.interval95[0]:.1f} to {rate.interval95[1]:.1f} %"
        )
    return "; ".join(parts)
