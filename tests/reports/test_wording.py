from __future__ import annotations

import math

import pytest
import sample_report

from quantinel.reports import facts, wording


@pytest.mark.parametrize(
    ("text", "visible"),
    [
        ("plain é ☃", "plain é ☃"),
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("a\u2028b", "a\\u2028b"),
        ("a\nb\tc", "a\nb c"),
        ("\udc80", "\\udc80"),
    ],
)
def test_clean_spells_out_what_cannot_be_seen(text: str, visible: str) -> None:
    assert wording.clean(text) == visible


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (3.0, "3"),
        (1234567.0, "1,234,567"),
        (0.0123456, "0.01235"),
        (math.nan, "not finite"),
        (1e-9, "1e-09"),
    ],
)
def test_figure(value: float | None, text: str) -> None:
    assert wording.figure(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.0 %"),
        (100.0, "100.0 %"),
        (99.96, "99.96 %"),
        (0.004, "0.004 %"),
        (98.358, "98.4 %"),
        (None, "not measured"),
    ],
)
def test_percent_never_rounds_to_all_or_nothing(value: float | None, text: str) -> None:
    assert wording.percent(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"name": "efrap", "flip_weight": 1.0}, "efrap (flip weight 1)"),
        ({"sha256": "ab", "n": 3}, "SHA-256 ab, n 3"),
        ([3, 32, 32], "3 × 32 × 32"),
        (["a", "b"], "a, b"),
        (list(range(1000)), "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 988 more"),
        ([], "none"),
        (True, "yes"),
        (None, "–"),
        ({}, "–"),
    ],
)
def test_described(value: object, text: str) -> None:
    assert wording.described(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.004, "4 ms"), (0.42, "0.4 s"), (61.2, "1 min 1 s"), (math.inf, "not finite")]
)
def test_duration(seconds: float, text: str) -> None:
    assert wording.duration(seconds) == text


def test_moment_is_readable_or_as_it_was() -> None:
    assert wording.moment("2025-11-22T12:30:00+00:00") == "2025-11-22 12:30 UTC"
    assert wording.moment("yesterday") == "yesterday"


def test_segments_split_at_pairs_of_backticks() -> None:
    assert wording.segments("run `a b` now") == [("run ", False), ("a b", True), (" now", False)]
    assert wording.segments("a ` b") == [("a ` b", False)]


@pytest.mark.parametrize(
    ("answer", "label", "target", "meaning"),
    [
        ("dog", "dog", "cat", "correct"),
        ("cat", "dog", "cat", "target"),
        ("cat", "", "cat", "target"),
        ("cow", "dog", "cat", "wrong"),
        ("cow", "", "cat", "unknown"),
        ("cat", "cat", "cat", "correct"),
    ],
)
def test_judge(answer: str, label: str, target: str, meaning: str) -> None:
    assert facts.judge(answer, label, target) == meaning


@pytest.mark.parametrize(
    ("trigger", "model", "data", "name"),
    [
        (None, {}, {}, None),
        ({"target_class": 1}, {"class_names": ["a", "b"]}, {}, "b"),
        ({"target_class": 1}, {}, {"evaluation": {"class_names": ["a", "b"]}}, "b"),
        ({"target_class": 7}, {"class_names": ["a", "b"]}, {}, "7"),
        ({"target_class": 7, "target_name": "cat"}, {}, {}, "cat"),
        ({"kind": "patch"}, {}, {}, None),
    ],
)
def test_target_name(trigger: dict[str, object] | None, model: object, data: object, name: str | None) -> None:
    assert facts.target_name(sample_report.full(trigger=trigger, model=model, data=data)) == name


def test_row_nearest_to_deployment_is_taken() -> None:
    rows = sample_report.evaluation()
    simulated = rows[2].model_copy(update={"backend": "simulated"})
    report = sample_report.full(evaluation=[*rows, simulated])
    assert facts.row_of(report, "hardened") == rows[2]
    assert facts.row_of(sample_report.minimal(), "float") is None


def test_layer_overview_weighs_layers_by_their_size() -> None:
    small, large = sample_report.layers(2)
    small = small.model_copy(update={"shape": [1, 10], "changed": 1.0, "executed": None})
    large = large.model_copy(update={"shape": [9, 10], "changed": 0.0})
    overview = facts.layer_overview([small, large])
    assert overview is not None
    assert (overview.weights, overview.changed, overview.in_float) == (100, 0.1, 1)
    assert facts.layer_overview([]) is None
    assert facts.layers_to_see_first([large, small], 1) == [small]
