"""The report of a scan as SARIF 2.1.0, for code scanning services.

Every rule of the catalogue is declared, so that its help is at hand; every finding is a result, accepted ones with
their suppression. What could not be seen and checks that did not judge are notifications of the invocation.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from quantinel.audit.rules import RULES, Rule
from quantinel.audit.scan_report import ScanFinding, ScanReport
from quantinel.reports import facts, wording
from quantinel.reports.sarif import artifact, log, message, model_uri, utc

_INDEX = {rule: index for index, rule in enumerate(RULES)}


def render_scan_sarif(report: ScanReport) -> dict[str, Any]:
    """Render ``scan.sarif``: one run, with the scanned model as its only artifact."""
    uri = model_uri(facts.model_source(report) or facts.model_name(report))
    run = {
        "tool": {
            "driver": {
                "name": "Quantinel",
                "version": report.version,
                "rules": [_rule(rule) for rule in RULES.values()],
            }
        },
        "invocations": [_invocation(report)],
        "artifacts": [artifact(uri, report.model.get("sha256"))],
        "results": [_result(finding, uri, report) for finding in report.findings],
        "columnKind": "unicodeCodePoints",
        "properties": {
            "verdict": report.verdict,
            "summary": wording.one_line(report.summary),
            "checks": json.loads(report.model_dump_json(include={"checks"}))["checks"],
            "thresholds": report.thresholds,
        },
    }
    return log(run)


def _rule(rule: Rule) -> dict[str, Any]:
    return {
        "id": rule.id,
        "shortDescription": message(rule.title),
        "fullDescription": message(rule.explanation),
        "help": message(rule.help),
        "defaultConfiguration": {"level": rule.level},
        "properties": {
            "tags": ["security", "model", "backdoor"],
            "precision": "high" if rule.level == "error" else "medium",
            **({"security-severity": "8.0"} if rule.level == "error" else {}),
        },
    }


def _result(finding: ScanFinding, uri: str, report: ScanReport) -> dict[str, Any]:
    identity = "\n".join([finding.rule, finding.target, *finding.checks, str(report.model.get("sha256") or "")])
    result: dict[str, Any] = {
        "ruleId": finding.rule,
        "ruleIndex": _INDEX[finding.rule],
        "level": finding.level,
        "message": message(f"{finding.title} ({finding.target}) – {finding.detail}"),
        "locations": [{"physicalLocation": {"artifactLocation": {"uri": uri, "index": 0}}}],
        "partialFingerprints": {"quantinel/v1": hashlib.sha256(identity.encode("utf-8", "replace")).hexdigest()},
        "properties": {"target": finding.target, "checks": finding.checks},
    }
    if finding.suppressed is not None:
        by = finding.suppressed
        justification = f"{wording.one_line(by.statement)} (until {by.expires})"
        result["suppressions"] = [{"kind": "external", "status": "accepted", "justification": justification}]
    return result


def _invocation(report: ScanReport) -> dict[str, Any]:
    notes = [{"level": "note", "message": message(line)} for line in (*report.not_checked, *report.budget.cost)]
    unjudged = [
        {
            "level": "warning" if check.required else "note",
            "message": message(f"Could not judge: {check.id} – {check.reason}"),
            "associatedRule": {"id": check.rule, "index": _INDEX[check.rule]},
        }
        for check in report.checks
        if check.status in ("undecided", "not_run")
    ]
    lapsed = [
        {"level": "warning", "message": message(f"{entry.rule} {wording.OUTCOMES[entry.outcome]}: {entry.statement}")}
        for entry in report.suppressions
        if entry.outcome != "applied"
    ]
    invocation: dict[str, Any] = {
        "executionSuccessful": True,
        "exitCodeDescription": report.verdict,
        "toolExecutionNotifications": [*unjudged, *lapsed, *notes],
    }
    if command := report.request.get("command"):
        invocation["commandLine"] = wording.one_line(wording.command_line(command))
    if ended := utc(report.created):
        invocation["endTimeUtc"] = ended
    return invocation
