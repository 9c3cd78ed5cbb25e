"""SARIF, JUnit and terminal pages of a scan. The official SARIF schema is not available offline: essential demands."""

from __future__ import annotations

import io
import json
import re
from typing import Any
from xml.etree import ElementTree

import pytest
import sample_scan
from rich.console import Console
from test_sarif import URI_REFERENCE, uris

from quantinel.audit.rules import RULES
from quantinel.audit.scan_report import ScanReport
from quantinel.errors import UsageError
from quantinel.reports.render import SCAN_RENDERERS, render
from quantinel.reports.scan_terminal import summary
from quantinel.reports.terminal_parts import as_text

NAMES = ["failing", "passing", "minimal", "hostile"]


@pytest.fixture(params=NAMES)
def any_scan(request: pytest.FixtureRequest) -> ScanReport:
    return getattr(sample_scan, request.param)()  # type: ignore[no-any-return]


def sarif(report: ScanReport) -> dict[str, Any]:
    return json.loads(render(report, "sarif"))["runs"][0]  # type: ignore[no-any-return]


def junit(report: ScanReport) -> ElementTree.Element:
    return ElementTree.fromstring(render(report, "junit"))


def shown(report: ScanReport, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(summary(report))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def flat(text: str) -> str:
    return " ".join(text.replace("│", " ").split())


def test_sarif_structure(any_scan: ScanReport) -> None:
    log = json.loads(render(any_scan, "sarif"))
    assert log["version"] == "2.1.0"
    assert log["$schema"].endswith("sarif-schema-2.1.0.json")
    (run,) = log["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == list(RULES)
    for rule in rules:
        assert all(rule[part]["text"] for part in ("shortDescription", "fullDescription", "help"))
        assert rule["defaultConfiguration"]["level"] in {"note", "warning", "error"}
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["level"] in {"note", "warning", "error"}
        assert result["message"]["text"]
        location = result["locations"][0]["physicalLocation"]["artifactLocation"]
        assert run["artifacts"][location["index"]]["location"]["uri"] == location["uri"]
        assert re.fullmatch("[0-9a-f]{64}", result["partialFingerprints"]["quantinel/v1"])
    assert all(URI_REFERENCE.fullmatch(uri) for uri in uris(log))
    (invocation,) = run["invocations"]
    assert invocation["executionSuccessful"] is True
    assert invocation["exitCodeDescription"] == any_scan.verdict
    for notification in invocation["toolExecutionNotifications"]:
        assert notification["level"] in {"note", "warning", "error"}
        assert notification["message"]["text"]
        rule = notification.get("associatedRule")
        assert rule is None or rules[rule["index"]]["id"] == rule["id"]


def test_every_finding_is_a_result_and_accepted_ones_are_suppressed() -> None:
    report = sample_scan.failing()
    results = sarif(report)["results"]
    assert [(item["ruleId"], item["level"]) for item in results] == [
        (finding.rule, finding.level) for finding in report.findings
    ]
    assert [item["ruleId"] for item in results if item.get("suppressions")] == ["QCB003"]
    (suppression,) = results[2]["suppressions"]
    assert suppression["kind"] == "external"
    assert suppression["status"] == "accepted"
    assert "ticket 4711. (until 2030-01-31)" in suppression["justification"]
    prints = [item["partialFingerprints"]["quantinel/v1"] for item in results]
    assert len(set(prints)) == len(prints)


def test_what_could_not_be_judged_or_seen_is_notified() -> None:
    report = sample_scan.failing()
    notified = sarif(report)["invocations"][0]["toolExecutionNotifications"]
    texts = [item["message"]["text"] for item in notified]
    assert set(report.not_checked) <= set(texts)
    for check in report.checks:
        if check.reason:
            assert any(check.id in text and check.reason in text for text in texts)
    assert any("has expired" in text for text in texts)


def test_junit_counts_what_it_holds(any_scan: ScanReport) -> None:
    root = junit(any_scan)
    cases = root.findall("./testsuite/testcase")
    assert len(cases) == len(any_scan.checks) == int(root.get("tests", "-1"))
    for word, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        found = root.findall(f"./testsuite/testcase/{tag}")
        assert int(root.get(word, "-1")) == len(found)
        assert sum(int(suite.get(word, "-1")) for suite in root.findall("testsuite")) == len(found)
        assert all(item.text for item in found)
    assert any_scan.verdict in root.get("name", "")


def test_junit_tells_failures_errors_and_skips_apart() -> None:
    root = junit(sample_scan.failing())
    outcome = {
        f"{suite.get('name')}/{case.get('name', '').partition(':')[0]}": next((child.tag for child in case), None)
        for suite in root.findall("testsuite") for case in suite.findall("testcase")
    }  # fmt: skip
    assert outcome["int4/re-rounding"] == "failure"
    assert outcome["int4/weight-residuals"] == "skipped"  # accepted
    assert outcome["int8/trigger-inversion"] == "error"  # required, undecided
    assert outcome["int8/block-outliers"] == "skipped"  # optional, undecided
    assert outcome["int8/re-rounding"] == "system-out"
    assert root.find("./testsuite/properties/property[@name='verdict']") is not None


def test_the_terminal_tells_the_whole_story() -> None:
    report = sample_scan.failing()
    text = flat(shown(report))
    assert "✗ FAIL resnet20" in text
    assert report.summary in text
    for check in report.checks:
        assert check.detector in text
        assert check.reason in text
    for sentence in [*report.not_checked, *report.next_steps, *report.budget.cost]:
        assert sentence.replace("`", "") in text
    assert "0 of 60 harmless" in text
    assert "accepted until 2030-01-31" in text
    assert "that has expired" in text


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_no_line_is_wider_than_the_terminal(any_scan: ScanReport, width: int) -> None:
    assert max(len(line.rstrip()) for line in shown(any_scan, width).splitlines()) <= width


def test_a_page_as_text_has_no_escapes(any_scan: ScanReport) -> None:
    text = as_text(summary(any_scan))
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_formats_of_the_other_report_are_refused() -> None:
    assert set(SCAN_RENDERERS) == {"html", "sarif", "junit", "json"}
    with pytest.raises(UsageError, match="not known for a scan report; choose one of html"):
        render(sample_scan.passing(), "markdown")
