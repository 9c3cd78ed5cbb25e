"""The report as SARIF 2.1.0, for code scanning services.

What becomes a result: every failing check, every required check that did not run, every finding about the input. What
the run could not see is a notification of the invocation, so that an empty list of results is never all there is.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import quote

from quantinel.audit.report import Check, Finding, Report
from quantinel.errors import EXIT_ERROR, EXIT_FINDINGS, EXIT_PASS
from quantinel.reports import facts, wording

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"

Level = Literal["error", "warning", "note"]

_EXIT_CODES = {"PASS": EXIT_PASS, "FAIL": EXIT_FINDINGS, "INCONCLUSIVE": EXIT_ERROR}
_FINDING_LEVELS: dict[str, Level] = {"info": "note", "warning": "warning", "error": "error"}
_SHA256 = re.compile(r"[0-9a-f]{64}")
_DRIVE = re.compile(r"[A-Za-z]:/")
_NAMED = ("timm:", "torchvision:", "hf:")


@dataclass(frozen=True)
class _Problem:
    """One result before it is put into SARIF's words."""

    rule_id: str
    title: str
    level: Level
    text: str
    properties: dict[str, Any]


def render_sarif(report: Report) -> dict[str, Any]:
    """Render ``report.sarif``: one run, with the input model as its only artifact."""
    problems = list(_problems(report))
    rules: dict[str, _Problem] = {}
    for problem in problems:
        rules.setdefault(problem.rule_id, problem)
    indices = {rule_id: index for index, rule_id in enumerate(rules)}
    run = {
        "tool": {
            "driver": {
                "name": "Quantinel",
                "version": report.version,
                "rules": [_rule(rule) for rule in rules.values()],
            }
        },
        "invocations": [_invocation(report)],
        "artifacts": [artifact(_uri(report), report.model.get("sha256"))],
        "results": [_result(problem, indices[problem.rule_id], report) for problem in problems],
        "columnKind": "unicodeCodePoints",
        "properties": {
            "verdict": report.verdict,
            "summary": wording.one_line(report.summary),
            "evaluation": json.loads(report.model_dump_json(include={"evaluation"}))["evaluation"],
            "verification": json.loads(report.model_dump_json(include={"verification"}))["verification"],
        },
    }
    return log(run)


def log(run: dict[str, Any]) -> dict[str, Any]:
    """A log file of one run."""
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def model_uri(source: str) -> str:
    """A URI reference for a model: relative for relative paths, ``file:`` for absolute ones, ``timm:...`` as it is."""
    path = source.replace("\\", "/")
    if _DRIVE.match(path):
        return "file:///" + path[:2] + _quoted(path[2:])
    if path.startswith("/"):
        return "file:///" + _quoted(path.lstrip("/"))
    # Any other scheme is a strange file name, not a link: its colon is encoded.
    if path.startswith(_NAMED):
        name, _, rest = path.partition(":")
        return f"{name}:{_quoted(rest)}"
    return _quoted(path) or "model"


def _quoted(path: str) -> str:
    return quote(path, safe="/", errors="replace")


def message(text: str) -> dict[str, str]:
    """A message object; braces and links, which SARIF gives a meaning, are made literal (3.11.5, 3.11.6)."""
    literal = wording.clean(text).replace("{", "{{").replace("}", "}}").replace("](", "] (")
    return {"text": literal.strip() or "–"}


def _problems(report: Report) -> Iterator[_Problem]:
    for check in report.checks:
        if check.status == "fail":
            yield _of_check(check, "error" if check.required else "warning", "Check failed")
        elif check.status == "not_run" and check.required:
            yield _of_check(check, "warning", "Required check did not run")
    for finding in report.findings:
        yield _of_finding(finding)


def _of_check(check: Check, level: Level, outcome: str) -> _Problem:
    measured = {"statistic": _finite(check.statistic), "threshold": _finite(check.threshold)}
    given = {name: value for name, value in measured.items() if value is not None}
    properties = {"status": check.status, "required": check.required, **given}
    return _Problem(
        _rule_id(check.id), check.title, level, f"{outcome}: {_joined(check.title, check.detail)}", properties
    )


def _finite(value: float | None) -> float | str | None:
    # JSON has no NaN and no infinity.
    return value if value is None or math.isfinite(value) else str(value)


def _of_finding(finding: Finding) -> _Problem:
    text, level = _joined(finding.title, finding.detail), _FINDING_LEVELS[finding.level]
    return _Problem(_rule_id(finding.id), finding.title, level, text, {"about": "input"})


def _joined(title: str, detail: str) -> str:
    return f"{title} – {detail}" if detail else title


def _rule_id(name: str) -> str:
    return wording.one_line(name) or "unnamed"


def _rule(problem: _Problem) -> dict[str, Any]:
    return {
        "id": problem.rule_id,
        "shortDescription": message(problem.title),
        "defaultConfiguration": {"level": problem.level},
    }


def _result(problem: _Problem, rule_index: int, report: Report) -> dict[str, Any]:
    identity = f"{problem.rule_id}\n{problem.title}\n{report.model.get('sha256', '')}"
    return {
        "ruleId": problem.rule_id,
        "ruleIndex": rule_index,
        "level": problem.level,
        "message": message(problem.text),
        "locations": [{"physicalLocation": {"artifactLocation": {"uri": _uri(report), "index": 0}}}],
        "partialFingerprints": {"quantinel/v1": hashlib.sha256(identity.encode("utf-8", "replace")).hexdigest()},
        "properties": problem.properties,
    }


def _uri(report: Report) -> str:
    return model_uri(facts.model_source(report) or facts.model_name(report))


def artifact(uri: str, sha256: object) -> dict[str, Any]:
    """The model, as the artifact that was analysed; its hash where it is one."""
    described: dict[str, Any] = {"location": {"uri": uri}, "roles": ["analysisTarget"]}
    digest = str(sha256 or "").lower()
    if _SHA256.fullmatch(digest):
        described["hashes"] = {"sha-256": digest}
    return described


def _invocation(report: Report) -> dict[str, Any]:
    unseen = [{"level": "note", "message": message(sentence)} for sentence in report.not_checked]
    not_run = [
        {
            "level": "warning" if check.required else "note",
            "message": message(f"Did not run: {_joined(check.title, check.detail)}"),
            "descriptor": {"id": _rule_id(check.id)},
        }
        for check in report.checks
        if check.status == "not_run"
    ]
    invocation: dict[str, Any] = {
        "executionSuccessful": True,
        "exitCode": _EXIT_CODES[report.verdict],
        "exitCodeDescription": report.verdict,
        "toolExecutionNotifications": [*not_run, *unseen],
    }
    if command := report.request.get("command"):
        invocation["commandLine"] = wording.one_line(wording.command_line(command))
    if ended := utc(report.created):
        invocation["endTimeUtc"] = ended
    return invocation


def utc(created: str) -> str | None:
    """An ISO 8601 time in UTC; None where it names no zone or is none."""
    try:
        time = datetime.fromisoformat(created)
    except ValueError:
        return None
    return f"{time.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}" if time.tzinfo else None
