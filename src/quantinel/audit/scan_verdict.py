"""From the checks of a scan to findings and a verdict.

The verdict is FAIL if a finding of level "error" counts, INCONCLUSIVE if a check that had to judge did not, and PASS
otherwise. A check that did not run, was cut short or is not calibrated never helps towards a PASS, and no suppression
can make it.
"""

from __future__ import annotations

import datetime
from collections.abc import Collection, Sequence

from quantinel.audit.report import Verdict
from quantinel.audit.rules import LEVELS, NOT_ASSESSABLE, RULES, Level, at_least
from quantinel.audit.scan_report import ScanCheck, ScanFinding, SuppressedBy, SuppressionUse
from quantinel.audit.suppressions import Suppression


def findings_of(checks: Sequence[ScanCheck]) -> list[ScanFinding]:
    """One finding per rule and target that has something to say: the most serious first, then by rule."""
    found: list[ScanFinding] = []
    for rule, target in dict.fromkeys((check.rule, check.target) for check in checks):
        own = [check for check in checks if (check.rule, check.target) == (rule, target)]
        failed = [check for check in own if check.status == "fail"]
        speaking = failed + [check for check in own if check.alarm and check.status != "fail"]
        if speaking:
            level: Level = RULES[rule].level if failed else "warning"
            found.append(_finding(rule, level, target, speaking))
    missing = [check for check in checks if check.required and unjudged(check)]
    found += [_finding(NOT_ASSESSABLE, RULES[NOT_ASSESSABLE].level, check.target, [check]) for check in missing]
    return sorted(found, key=lambda finding: (-LEVELS.index(finding.level), finding.rule))


def unjudged(check: ScanCheck) -> bool:
    """Whether something was not judged; of a check that failed, the rest of what it looks at."""
    return check.status in ("undecided", "not_run") or (check.status == "fail" and bool(check.reason))


def _finding(rule: str, level: Level, target: str, checks: list[ScanCheck]) -> ScanFinding:
    parts = []
    for check in checks:
        leaning = f"; leans to class {check.suspect_class}" if check.suspect_class is not None else ""
        parts.append(f"{check.detector}: {check.reason if rule == NOT_ASSESSABLE else check.detail + leaning}")
    if level == "warning" and rule != NOT_ASSESSABLE:
        parts += [f"a warning only: {reason}" for reason in dict.fromkeys(check.reason for check in checks)]
    return ScanFinding(
        rule=rule,
        title=RULES[rule].title,
        level=level,
        target=target,
        checks=[check.id for check in checks],
        detail="; ".join(parts),
    )


def suppress(
    findings: Sequence[ScanFinding],
    suppressions: Sequence[Suppression],
    sha256: str | None,
    today: datetime.date,
    artefact: str | None = None,
) -> tuple[list[ScanFinding], list[SuppressionUse]]:
    """Mark accepted findings, and say what became of every entry.

    Args:
        findings: of the scan.
        suppressions: of the file.
        sha256: hash of the model's file, if it is known.
        today: entries that expired before it do not apply.
        artefact: hash of the shipped file, if there is one.
    """
    uses = []
    marked = list(findings)
    for entry in suppressions:
        covered = [
            index
            for index, finding in enumerate(findings)
            if entry.covers(finding.rule, finding.target, sha256, artefact)
        ]
        outcome = "unused" if not covered else "expired" if entry.expires < today else "applied"
        for index in covered if outcome == "applied" else ():
            by = SuppressedBy(statement=entry.statement, expires=entry.expires)
            marked[index] = marked[index].model_copy(update={"suppressed": by})
        uses.append(SuppressionUse.model_validate({**entry.model_dump(), "outcome": outcome}))
    return marked, uses


def scan_verdict(
    checks: Sequence[ScanCheck], findings: Sequence[ScanFinding], expected: Collection[str] = ()
) -> Verdict:
    """The verdict.

    Args:
        checks: all of them.
        findings: of these checks, suppressions applied.
        expected: ids of checks that must be among them and required.
    """
    if any(finding.level == "error" and finding.suppressed is None for finding in findings):
        return "FAIL"
    accepted = {
        identity for finding in findings if finding.suppressed is not None and finding.rule != NOT_ASSESSABLE
        for identity in finding.checks
    }  # fmt: skip
    required = [check for check in checks if check.required]
    settled = all(
        check.status == "pass" or (check.status == "fail" and check.id in accepted and not unjudged(check))
        for check in required
    ) and {check.id for check in required} >= set(expected)
    return "PASS" if required and settled else "INCONCLUSIVE"


def reaches(findings: Sequence[ScanFinding], level: Level) -> bool:
    """Whether a finding that counts is at least this serious. What could not be judged is no finding in this sense:
    it makes a scan inconclusive."""
    return any(
        finding.suppressed is None and finding.rule != NOT_ASSESSABLE and at_least(finding.level, level)
        for finding in findings
    )
