"""A detector's figure becomes pass or fail only against a calibrated threshold."""

from __future__ import annotations

import math
from typing import Any

import pytest
from tests.audit.checks import place, threshold, thresholds

from quantinel.audit.judging import Circumstances, judge
from quantinel.detectors import Detection

CALIBRATED = thresholds(threshold(images=100))


def given(**changes: Any) -> Circumstances:
    return Circumstances(**({"weight_bits": 8, "images": 256, "class_names": ("cat", "dog")} | changes))


@pytest.mark.parametrize(("score", "status"), [(0.9, "fail"), (0.5, "pass"), (-3.0, "pass")])
def test_calibrated_figures_are_judged(score: float, status: str) -> None:
    found = judge(place(), Detection(score), CALIBRATED, given())
    assert (found.status, found.judged_by, found.threshold, found.reason) == (status, "calibration", 0.5, "")
    assert found.false_positives is not None
    assert "0 of 60 harmless models" in found.detail


@pytest.mark.parametrize(
    ("detection", "circumstances", "words"),
    [
        (Detection(0.9), {"weight_bits": 8, "images": 99}, "measured with 100 images, it had 99"),
        (Detection(math.nan), {}, "no number"),
        (Detection(math.inf), {}, "no number"),
        (Detection(0.1), {"cut_short": True}, "cut short"),
    ],
)
def test_what_a_threshold_does_not_cover_stays_undecided(
    detection: Detection, circumstances: dict[str, Any], words: str
) -> None:
    found = judge(place(), detection, CALIBRATED, given(**circumstances))
    assert found.status == "undecided"
    assert words in found.reason


@pytest.mark.parametrize(("prunings", "status"), [(1, "fail"), (2, "fail"), (3, "pass")])
def test_prunings_share_a_rate_and_know_no_grid(prunings: int, status: str) -> None:
    """Regression: every pruning had the whole rate, and a threshold of the bits of the first grid, or none."""
    limits = thresholds(threshold("pruning-divergence", statistic="p_value", weight_bits=None, threshold=0.01))
    for bits in range(2, 9):
        circumstances = given(weight_bits=bits, prunings=prunings)
        found = judge(place("pruning-divergence"), Detection(2.0, p_value=0.005), limits, circumstances)
        assert (found.status, found.p_value, found.value) == (status, 0.005 * prunings, 0.005 * prunings)
        assert (f"(times {prunings} prunings)" in found.detail) == (prunings > 1)
    rare = judge(place("pruning-divergence"), Detection(2.0, p_value=0.5), limits, given(prunings=3))
    assert rare.p_value == 1.0
    unknown = judge(place("pruning-inversion"), Detection(2.0, p_value=0.5), limits, given())
    assert "rate; fit one" in unknown.reason


def test_what_was_found_in_little_time_counts() -> None:
    found = judge(place(), Detection(0.9, notes=("3 of 99 copies",)), CALIBRATED, given(cut_short=True))
    assert (found.status, found.notes) == ("fail", ["3 of 99 copies"])


@pytest.mark.parametrize(
    ("detector", "detection", "alarm"),
    [
        ("re-rounding", Detection(99.0, p_value=0.0001), True),
        ("re-rounding", Detection(99.0, p_value=0.2), False),
        ("re-rounding", Detection(99.0), False),
        ("on-grid", Detection(0.9, p_value=0.0), False),
        ("weight-residuals", Detection(0.4), True),
        ("weight-residuals", Detection(0.01), False),
    ],
)
def test_uncalibrated_figures_can_warn_and_nothing_more(detector: str, detection: Detection, alarm: bool) -> None:
    found = judge(place(detector), detection, thresholds(), given())
    assert (found.status, found.judged_by, found.alarm) == ("undecided", "nothing", alarm)
    assert found.reason.startswith("uncalibrated")


def test_p_values_are_judged_where_they_were_calibrated() -> None:
    entry = threshold(statistic="p_value", threshold=0.01)
    assert judge(place(), Detection(0.0, p_value=0.01), thresholds(entry), given()).status == "fail"
    assert judge(place(), Detection(9.9, p_value=0.02), thresholds(entry), given()).status == "pass"
    missing = judge(place(), Detection(9.9), thresholds(entry), given())
    assert (missing.status, missing.value) == ("undecided", None)


def test_evidence_is_named_and_finite() -> None:
    detection = Detection(
        0.9, statistics={"a": 1.0, "b": math.nan}, suspect_class=1, by_class={1: 0.9, 0: 0.1, 7: math.inf},
        by_layer={"conv": 0.3, "dead": math.nan},
    )  # fmt: skip
    found = judge(place(), detection, CALIBRATED, given())
    assert found.statistics == {"a": 1.0}
    assert [(item.name, item.score) for item in found.by_class] == [("cat", 0.1), ("dog", 0.9)]
    assert [layer.name for layer in found.by_layer] == ["conv"]
    assert found.suspect_class == "dog"
    assert judge(place(), Detection(0.0, suspect_class=5), CALIBRATED, given()).suspect_class == "5"
