"""The built-in checks: the shipped file, and answers before and after compression."""

from __future__ import annotations

import pytest
import torch
from tests.audit.checks import place

from quantinel.audit.artefact import artefact_check
from quantinel.audit.behaviour import Answers, behaviour_check
from quantinel.audit.rules import ARTEFACT, BEHAVIOUR
from quantinel.audit.scan_report import ScanCheck
from quantinel.backends.artefact_comparison import ArtefactComparison, ArtefactFinding, LayerDifference
from quantinel.quantization.scheme import parse_scheme

NAMES = ("cat", "dog", "fox", "owl")


def behaviour(floating: list[int], compressed: list[int], scheme: str = "int8", different: int = 400) -> ScanCheck:
    answers = Answers(torch.tensor(floating), torch.tensor(compressed), 4, different)
    return behaviour_check(place(BEHAVIOUR), answers, parse_scheme(scheme), NAMES, 0.1)


def test_equal_answers_pass() -> None:
    found = behaviour([0, 1, 2, 3] * 100, [0, 1, 2, 3] * 100)
    assert (found.status, found.value, found.judged_by) == ("pass", 100.0, "bound")


@pytest.mark.parametrize(("scheme", "status"), [("int8", "fail"), ("int4", "pass")])
def test_few_bits_may_cost_more(scheme: str, status: str) -> None:
    changed = [(answer + (index % 20 < 3)) % 4 for index, answer in enumerate([0, 1, 2, 3] * 100)]
    assert behaviour([0, 1, 2, 3] * 100, changed, scheme).status == status


def test_a_class_that_is_lost_fails_though_most_answers_are_kept() -> None:
    floating = [0] * 190 + [1] * 190 + [3] * 20
    found = behaviour(floating, [0] * 190 + [1] * 190 + [0] * 20)
    assert found.status == "fail"
    assert "classes that lose most of their images: owl" in found.detail
    assert [item.name for item in found.by_class] == ["cat", "dog", "owl"]


@pytest.mark.parametrize(("lost", "status"), [(4, "pass"), (12, "pass"), (13, "fail")])
def test_many_classes_do_not_add_up_to_a_false_alarm(lost: int, status: str) -> None:
    """Regression: an interval of 95 % for each of 100 classes failed harmless models on four images of one."""
    floating = torch.cat([torch.arange(1, 100).repeat(6), torch.zeros(lost, dtype=torch.int64)])
    compressed = floating.clamp_min(1)
    found = behaviour_check(place(BEHAVIOUR), Answers(floating, compressed, 100, 400), parse_scheme("int8"), None, 0.1)
    assert found.status == status
    assert f"{99 + (lost < 13)} of 100 classes have too few images to be judged alone" in found.detail


def test_a_class_that_takes_over_is_named() -> None:
    floating = [0, 1, 2, 3] * 100
    found = behaviour(floating, [2] * 400)
    assert (found.status, found.suspect_class) == ("fail", "fox")
    assert "class fox gains 75.0 points" in found.detail


@pytest.mark.parametrize(
    ("floating", "compressed", "different", "words"),
    [
        ([0, 1] * 10, [0, 1] * 8 + [1, 0, 1, 1], 400, "too few to tell"),
        ([0, 1] * 100, [0, 1] * 100, 1, "1 different images say too little"),
        ([2] * 200, [2] * 200, 200, "one class for all images"),
    ],
)
def test_images_that_show_nothing_do_not_pass(
    floating: list[int], compressed: list[int], different: int, words: str
) -> None:
    found = behaviour(floating, compressed, different=different)
    assert found.status == "undecided"
    assert words in found.reason


def compared(*findings: ArtefactFinding, missing: tuple[str, ...] = ()) -> ScanCheck:
    layer = LayerDifference("conv", "w", 9, 0.25, 0.0, 0.6, (1.0, 1.0), False, 1.0, 1.0, 1.0, None)
    found = ArtefactComparison((layer,), findings, missing, 0.25)
    return artefact_check(place(ARTEFACT, "model.onnx"), found, 0.1)


def test_a_plain_quantization_passes() -> None:
    found = compared(ArtefactFinding("nearest-rounding", "info", None, "all layers hold nearest rounding"))
    assert (found.status, found.rule, found.required, found.value) == ("pass", "QCB005", True, 0.0)


@pytest.mark.parametrize("level", ["warning", "error"])
def test_whatever_rounding_does_not_explain_fails(level: str) -> None:
    found = compared(ArtefactFinding("rounding-chosen", level, None, "half are not nearest"))  # type: ignore[arg-type]
    assert (found.status, found.detail) == ("fail", "half are not nearest")
    assert [layer.score for layer in found.by_layer] == [0.25]


def test_what_could_not_be_compared_is_never_fine() -> None:
    found = compared(missing=("fc has no counterpart in the file",))
    assert found.status == "undecided"
    assert "fc has no counterpart" in found.reason
    error = compared(ArtefactFinding("layer-added", "error", "x", "a hidden branch"), missing=("fc",))
    assert (error.status, error.reason) == ("fail", "could not be compared: fc")


def test_many_findings_are_cut() -> None:
    found = compared(*(ArtefactFinding("x", "error", None, f"finding {index}") for index in range(20)))
    assert found.value == 20.0
    assert found.detail.endswith("finding 7; and 12 more")
