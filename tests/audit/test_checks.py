"""Checks of an emitted file: what could not be measured is never a pass."""

from __future__ import annotations

import pytest

from quantinel.audit.checks import agreement_check, trigger_check, verdict
from quantinel.audit.report import EvaluationRow, Rate
from quantinel.data.sampling import MIN_EVALUATION
from quantinel.metrics import Proportion
from quantinel.quantization.scheme import QuantScheme


def rate(hits: int, n: int) -> Rate:
    return Rate.model_validate(Proportion(hits, n).to_dict())


def row(
    asr: Rate | None = None, agreement: Rate | None = None, cda: Rate | None = None, base_rate: Rate | None = None
) -> EvaluationRow:
    return EvaluationRow(
        variant="hardened", backend="onnxruntime", cda=cda, asr=asr, ta=None, agreement=agreement, base_rate=base_rate
    )


def test_without_a_trigger_its_check_is_optional() -> None:
    check = trigger_check(row(), row(), given=False, images=100)
    assert (check.status, check.required, verdict([check])) == ("not_run", False, "PASS")
    assert "no trigger was given" in check.detail


@pytest.mark.parametrize(
    ("cda", "images", "words"),
    [
        (rate(90, 100), 100, "none of the 100 evaluation images is of another class than the trigger's target; give"),
        (None, 100, "none of the 100 evaluation images is, for the float model, of another class"),
        (None, 0, "there are no images to evaluate on"),
    ],
)
def test_a_trigger_that_could_not_be_measured_leaves_no_verdict(cda: Rate | None, images: int, words: str) -> None:
    check = trigger_check(row(cda=cda), row(cda=cda), given=True, images=images)
    assert (check.status, check.required, verdict([check])) == ("not_run", True, "INCONCLUSIVE")
    assert words in check.detail


@pytest.mark.parametrize(
    ("hits", "n", "bare", "status"),
    [
        (0, 1, 0, "not_run"),
        (0, MIN_EVALUATION - 1, 0, "not_run"),
        (0, MIN_EVALUATION, 0, "pass"),
        (20, 20, 0, "fail"),  # so many obeyed need no more images
        (40, 900, 0, "fail"),
        (40, 900, 38, "pass"),  # the network's own errors
        (40, 900, None, "fail"),  # a report of earlier code
    ],
)
def test_a_trigger_is_asleep_where_the_same_images_are_answered_alike_without_it(
    hits: int, n: int, bare: int | None, status: str
) -> None:
    found = row(asr=rate(hits, n), base_rate=None if bare is None else rate(bare, n))
    check = trigger_check(row(asr=rate(0, n)), found, given=True, images=n)
    assert (check.status, check.required) == (status, True)
    assert (f"at least {MIN_EVALUATION} are needed" in check.detail) == (status == "not_run")
    assert ("% of them without the trigger" in check.detail) == (bare is not None and status != "not_run")


@pytest.mark.parametrize(
    ("hits", "n", "different", "status"),
    [
        (1, 1, 1, "not_run"),
        (MIN_EVALUATION - 1, MIN_EVALUATION - 1, MIN_EVALUATION - 1, "not_run"),
        (MIN_EVALUATION, MIN_EVALUATION, MIN_EVALUATION, "pass"),
        (400, 400, 1, "not_run"),  # copies of one image
        (0, 20, 20, "fail"),  # so few answers kept need no more images
        (16, 20, 20, "not_run"),
        (70, 100, 100, "fail"),
    ],
)
def test_few_images_do_not_pass(hits: int, n: int, different: int, status: str) -> None:
    check = agreement_check(row(), row(agreement=rate(hits, n)), QuantScheme(), different)
    assert (check.status, check.required) == (status, True)
    assert ("at least 32 are needed" in check.detail) == (status == "not_run")
