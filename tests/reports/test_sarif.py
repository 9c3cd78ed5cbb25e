"""The official schema is not available offline: what follows are its essential demands."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import sample_report

from quantinel.audit.report import Report
from quantinel.reports.render import render
from quantinel.reports.sarif import message, model_uri, render_sarif

URI_REFERENCE = re.compile(r"(?:[A-Za-z0-9._~/:!$&'()*+,;=@-]|%[0-9A-F]{2})+")


def run_of(report: Report) -> dict[str, Any]:
    return render_sarif(report)["runs"][0]  # type: ignore[no-any-return]


def uris(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [item for key, inner in value.items() for item in ([inner] if key == "uri" else uris(inner))]
    return [item for inner in value for item in uris(inner)] if isinstance(value, list) else []


def test_structure(any_report: Report) -> None:
    log = json.loads(render(any_report, "sarif"))
    assert log["version"] == "2.1.0"
    assert log["$schema"].endswith("sarif-schema-2.1.0.json")
    (run,) = log["runs"]
    driver = run["tool"]["driver"]
    assert driver["name"] == "Quantinel"
    assert driver["version"] == "0.1.0"
    identifiers = [rule["id"] for rule in driver["rules"]]
    assert len(identifiers) == len(set(identifiers))
    assert all(rule["shortDescription"]["text"] for rule in driver["rules"])
    for result in run["results"]:
        assert identifiers[result["ruleIndex"]] == result["ruleId"]
        assert result["level"] in {"none", "note", "warning", "error"}
        assert result["message"]["text"]
        location = result["locations"][0]["physicalLocation"]["artifactLocation"]
        assert run["artifacts"][location["index"]]["location"]["uri"] == location["uri"]
    assert all(URI_REFERENCE.fullmatch(uri) for uri in uris(log))
    (invocation,) = run["invocations"]
    assert isinstance(invocation["executionSuccessful"], bool)
    for notification in invocation["toolExecutionNotifications"]:
        assert notification["level"] in {"note", "warning", "error"}
        assert notification["message"]["text"]


def test_failures_missing_required_checks_and_findings_become_results() -> None:
    checks = [
        sample_report.check("pass"),
        sample_report.check("fail"),
        sample_report.check("fail", id="optional-fail", required=False),
        sample_report.check("not_run"),
        sample_report.check("not_run", id="optional-not-run", required=False),
    ]
    run = run_of(sample_report.full(checks=checks, verdict="FAIL"))
    assert [(result["ruleId"], result["level"]) for result in run["results"]] == [
        ("some-fail", "error"),
        ("optional-fail", "warning"),
        ("some-not_run", "warning"),
        ("backdoor-wakes", "error"),
        ("weights-at-boundaries", "warning"),
        ("dead-channels", "note"),
    ]
    assert run["results"][0]["message"]["text"] == "Check failed: Some fail check – detail of fail"
    assert run["results"][2]["message"]["text"].startswith("Required check did not run: ")
    notifications = run["invocations"][0]["toolExecutionNotifications"]
    assert [item["descriptor"]["id"] for item in notifications if "descriptor" in item] == [
        "some-not_run",
        "optional-not-run",
    ]


def test_what_could_not_be_seen_is_notified(full_report: Report) -> None:
    notified = [item["message"]["text"] for item in run_of(full_report)["invocations"][0]["toolExecutionNotifications"]]
    assert set(full_report.not_checked) <= set(notified)


@pytest.mark.parametrize(("verdict", "code"), [("PASS", 0), ("FAIL", 1), ("INCONCLUSIVE", 2)])
def test_exit_code_follows_the_verdict(verdict: str, code: int) -> None:
    invocation = run_of(sample_report.full(verdict=verdict))["invocations"][0]
    assert invocation["exitCode"] == code
    assert invocation["exitCodeDescription"] == verdict


@pytest.mark.parametrize(
    ("created", "ended"),
    [
        ("2025-11-22T12:30:00+00:00", "2025-11-22T12:30:00Z"),
        ("2025-11-22T13:30:00+01:00", "2025-11-22T12:30:00Z"),
        ("2025-11-22T12:30:00", None),
        ("yesterday", None),
    ],
)
def test_time_is_utc_or_absent(created: str, ended: str | None) -> None:
    assert run_of(sample_report.full(created=created))["invocations"][0].get("endTimeUtc") == ended


def test_one_rule_for_two_findings_of_one_kind(full_report: Report) -> None:
    twice = [full_report.findings[0], full_report.findings[0].model_copy(update={"title": "another"})]
    run = run_of(sample_report.full(findings=twice))
    assert len(run["tool"]["driver"]["rules"]) == 1
    assert [result["ruleIndex"] for result in run["results"]] == [0, 0]
    prints = [result["partialFingerprints"]["quantinel/v1"] for result in run["results"]]
    assert len(set(prints)) == 2


def test_hash_of_the_model_is_given_when_known(full_report: Report, minimal_report: Report) -> None:
    assert run_of(full_report)["artifacts"][0]["hashes"] == {"sha-256": "3f1d9a0c" * 8}
    assert "hashes" not in run_of(minimal_report)["artifacts"][0]


@pytest.mark.parametrize(
    ("source", "uri"),
    [
        ("models/my net.onnx", "models/my%20net.onnx"),
        ("models\\net.onnx", "models/net.onnx"),
        ("/srv/models/net.onnx", "file:///srv/models/net.onnx"),
        ("C:\\models\\net 1.onnx", "file:///C:/models/net%201.onnx"),
        ("timm:resnet18.a1_in1k", "timm:resnet18.a1_in1k"),
        ("javascript:alert(1)", "javascript%3Aalert%281%29"),
        ("modèle.onnx", "mod%C3%A8le.onnx"),
        ("100%.onnx", "100%25.onnx"),
        ("", "model"),
    ],
)
def test_model_uri(source: str, uri: str) -> None:
    assert model_uri(source) == uri


def test_message_has_no_placeholders_links_or_escapes() -> None:
    assert message("{0} [a](http://b) \x1b[0m") == {"text": "{{0}} [a] (http://b) \\x1b[0m"}
    assert message("") == {"text": "–"}


def test_figures_that_json_lacks_are_spelled_out() -> None:
    check = sample_report.check("fail", statistic=float("nan"), threshold=float("inf"))
    properties = run_of(sample_report.full(checks=[check]))["results"][0]["properties"]
    assert (properties["statistic"], properties["threshold"]) == ("nan", "inf")
