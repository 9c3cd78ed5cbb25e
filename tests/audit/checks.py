"""Checks and thresholds that the tests of the audit share."""

from __future__ import annotations

from typing import Any

from quantinel.audit.judging import Place
from quantinel.audit.rules import rule_of
from quantinel.audit.scan_report import ScanCheck
from quantinel.audit.thresholds import Threshold, Thresholds
from quantinel.metrics import Proportion


def place(detector: str = "re-rounding", target: str = "int8", required: bool | None = None) -> Place:
    """A place, required as its rule says."""
    needed = detector in rule_of(detector).required if required is None else required
    return Place(detector, f"Title of {detector}", target, needed)


def check(detector: str, status: str, target: str = "int8", required: bool | None = None, **fields: Any) -> ScanCheck:
    """A check of one status."""
    reason = "" if status in ("pass", "fail") else "a reason"
    return place(detector, target, required).check(status, **({"reason": reason} | fields))  # type: ignore[arg-type]


def threshold(detector: str = "re-rounding", **changes: Any) -> Threshold:
    """A calibrated threshold."""
    fields: dict[str, Any] = {
        "detector": detector, "statistic": "score", "weight_bits": (2, 8), "threshold": 0.5,
        "false_positives": Proportion(0, 60).to_dict(), "fitted_on": ["clean"], "fitted_models": 40,
        "judged_on": ["pruned"], "images": 0,
    }  # fmt: skip
    return Threshold.model_validate(fields | changes)


def thresholds(*entries: Threshold) -> Thresholds:
    """A file of thresholds."""
    return Thresholds(
        alpha=0.01, suite="made", rows_sha256="", commit="", created="", command="", entries=list(entries)
    )
