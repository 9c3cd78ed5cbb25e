"""The verdict of a scan: never PASS when a required check did not judge, whatever else happened."""

from __future__ import annotations

import datetime
from collections.abc import Collection, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.audit.checks import check

from quantinel.audit.rules import ARTEFACT, BEHAVIOUR, NOT_ASSESSABLE, RULES, Level
from quantinel.audit.scan_report import ScanCheck
from quantinel.audit.scan_verdict import findings_of, reaches, scan_verdict, suppress
from quantinel.audit.suppressions import Suppression

TODAY = datetime.date(2026, 1, 1)
DETECTORS = ("re-rounding", "trigger-inversion", "weight-residuals", "activation-drift", BEHAVIOUR, "a plugin")
LEVELS: tuple[Level, ...] = ("note", "warning", "error")

statuses = st.sampled_from(["pass", "fail", "undecided", "not_run"])
any_check = st.builds(
    check, st.sampled_from(DETECTORS), statuses, st.sampled_from(["int8", "int4"]), st.booleans(), alarm=st.booleans()
)
any_checks = st.lists(any_check, max_size=12, unique_by=lambda item: item.id)
any_suppression = st.builds(
    Suppression,
    rule=st.sampled_from([rule for rule in RULES if rule != NOT_ASSESSABLE]),
    statement=st.just("accepted for this test"),
    expires=st.dates(datetime.date(2025, 1, 1), datetime.date(2027, 1, 1)),
    target=st.sampled_from([None, "int8", "int4"]),
    model=st.sampled_from([None, "0" * 64, "f" * 64]),
)


def suppression(rule: str, **changes: Any) -> Suppression:
    fields = {"rule": rule, "statement": "accepted for this test", "expires": TODAY}
    return Suppression.model_validate(fields | changes)


def decide(checks: list[ScanCheck], suppressions: Sequence[Suppression] = (), expected: Collection[str] = ()) -> str:
    findings, _ = suppress(findings_of(checks), suppressions, "f" * 64, TODAY)
    return scan_verdict(checks, findings, expected)


@settings(max_examples=400, deadline=None)
@given(any_checks, st.lists(any_suppression, max_size=5))
def test_never_pass_unless_every_required_check_judged(
    checks: list[ScanCheck], suppressions: list[Suppression]
) -> None:
    findings, _ = suppress(findings_of(checks), suppressions, "f" * 64, TODAY)
    verdict = scan_verdict(checks, findings)
    required = [item for item in checks if item.required]
    if not required or any(item.status in ("undecided", "not_run") for item in required):
        assert verdict != "PASS"
    if verdict == "PASS":
        accepted = {identity for item in findings if item.suppressed for identity in item.checks}
        assert all(item.status != "fail" or item.id in accepted for item in checks)
    if any(item.level == "error" and item.suppressed is None for item in findings):
        assert verdict == "FAIL"
    assert (verdict == "FAIL") == reaches(findings, "error")


@settings(max_examples=200, deadline=None)
@given(any_checks)
def test_suppressions_aside_a_failed_check_fails(checks: list[ScanCheck]) -> None:
    assert (decide(checks) == "FAIL") == any(item.status == "fail" for item in checks)


@settings(max_examples=200, deadline=None)
@given(any_checks, any_check)
def test_one_more_check_never_turns_a_fail_into_a_pass(checks: list[ScanCheck], more: ScanCheck) -> None:
    extended = [*checks, *([] if more.id in {item.id for item in checks} else [more])]
    order = ("PASS", "INCONCLUSIVE", "FAIL")
    if decide(checks) == "FAIL":
        assert decide(extended) == "FAIL"
    if any(item.required for item in checks):
        assert order.index(decide(extended)) >= order.index(decide(checks))


def test_a_check_that_is_missing_altogether_prevents_a_pass() -> None:
    checks = [check("re-rounding", "pass")]
    assert decide(checks) == "PASS"
    assert decide(checks, expected={"int8/re-rounding"}) == "PASS"
    assert decide(checks, expected={"int8/re-rounding", "int8/trigger-inversion"}) == "INCONCLUSIVE"
    assert decide([]) == "INCONCLUSIVE"


def test_a_required_check_without_threshold_is_inconclusive_and_says_so() -> None:
    checks = [check("re-rounding", "undecided", alarm=True, reason="uncalibrated: no threshold")]
    findings = findings_of(checks)
    assert [(finding.rule, finding.level) for finding in findings] == [("QCB001", "warning"), ("QCB007", "warning")]
    assert all("uncalibrated" in finding.detail for finding in findings)
    assert findings[0].detail.endswith("a warning only: uncalibrated: no threshold")
    assert decide(checks) == "INCONCLUSIVE"


def test_optional_checks_that_could_not_judge_are_no_findings() -> None:
    checks = [
        check("re-rounding", "pass"),
        check("activation-drift", "not_run"),
        check("weight-residuals", "undecided"),
    ]
    assert findings_of(checks) == []
    assert decide(checks) == "PASS"


def test_checks_of_one_rule_and_target_make_one_finding() -> None:
    checks = [
        check("activation-drift", "undecided", alarm=True), check("re-rounding", "fail", suspect_class="cat"),
        check("re-rounding", "fail", "int4"),
    ]  # fmt: skip
    findings = findings_of(checks)
    assert [(finding.rule, finding.target) for finding in findings] == [("QCB001", "int8"), ("QCB001", "int4")]
    assert findings[0].checks == ["int8/re-rounding", "int8/activation-drift"]
    assert "leans to class cat" in findings[0].detail
    assert "a warning only" not in findings[0].detail


@pytest.mark.parametrize(
    ("changes", "verdict", "outcome"),
    [
        ({}, "PASS", "applied"),
        ({"expires": TODAY - datetime.timedelta(days=1)}, "FAIL", "expired"),
        ({"target": "int4"}, "FAIL", "unused"),
        ({"target": "int8", "model": "f" * 64}, "PASS", "applied"),
        ({"model": "0" * 64}, "FAIL", "unused"),
    ],
)
def test_suppressions_apply_until_they_expire(changes: dict[str, Any], verdict: str, outcome: str) -> None:
    checks = [check("weight-residuals", "fail"), check("re-rounding", "pass")]
    entry = suppression("QCB003", **changes)
    findings, uses = suppress(findings_of(checks), (entry,), "f" * 64, TODAY)
    assert [use.outcome for use in uses] == [outcome]
    assert [finding.suppressed is not None for finding in findings] == [outcome == "applied"]
    assert decide(checks, (entry,)) == verdict


def test_a_suppression_for_a_model_does_not_apply_to_models_without_hash() -> None:
    findings, uses = suppress(
        findings_of([check("weight-residuals", "fail")]), (suppression("QCB003", model="f" * 64),), None, TODAY
    )
    assert findings[0].suppressed is None
    assert uses[0].outcome == "unused"


def test_levels_decide_what_counts() -> None:
    warning = findings_of([check("weight-residuals", "undecided", alarm=True)])
    assert [reaches(warning, level) for level in LEVELS] == [True, True, False]
    assert not any(reaches(findings_of([check("re-rounding", "not_run")]), level) for level in LEVELS)


def test_an_accepted_failure_accepts_nothing_that_was_not_judged() -> None:
    """Regression: whoever accepted a quantizer's rounding accepted with it that the file was not run."""
    failed = check(ARTEFACT, "fail", "model.onnx", True)
    other = failed.model_copy(update={"reason": "could not be compared: the file was not run"})
    for item, verdict, rules in ((failed, "PASS", ["QCB005"]), (other, "INCONCLUSIVE", ["QCB005", "QCB007"])):
        findings, _ = suppress(findings_of([item]), [suppression("QCB005")], None, TODAY)
        assert [finding.rule for finding in findings] == rules
        assert scan_verdict([item], findings) == verdict


def test_a_shipped_file_is_accepted_by_its_hash() -> None:
    """Regression: an accepted finding about one shipped file could only be given for all of them."""
    findings, entry = (
        findings_of([check(ARTEFACT, "fail", "model.onnx", True)]),
        suppression("QCB005", artefact="a" * 64),
    )
    for shipped, outcome in (("a" * 64, "applied"), ("b" * 64, "unused"), (None, "unused")):
        marked, (use,) = suppress(findings, [entry], None, TODAY, shipped)
        assert (use.outcome, marked[0].suppressed is not None) == (outcome, outcome == "applied")
