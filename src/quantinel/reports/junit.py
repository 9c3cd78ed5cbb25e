"""The report of a scan as JUnit XML, for the test views of CI services.

A suite per target, a case per check. A check that found something is a failure; a required one that could not judge is
an error; an optional one that could not, and an accepted finding, are skipped, with the reason as their message.
"""

from __future__ import annotations

from xml.etree.ElementTree import Element, SubElement, indent, tostring

from quantinel.audit.scan_report import ScanCheck, ScanReport
from quantinel.reports import facts, wording


def render_junit(report: ScanReport) -> str:
    """Render ``scan.xml``."""
    accepted = {
        identity: finding.suppressed for finding in report.findings if finding.suppressed is not None
        for identity in finding.checks
    }  # fmt: skip
    root = Element("testsuites", name=f"Quantinel scan of {_text(facts.model_name(report))}: {report.verdict}")
    totals = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    for target in dict.fromkeys(check.target for check in report.checks):
        suite = SubElement(root, "testsuite", name=_text(target), timestamp=report.created.partition("+")[0])
        properties = SubElement(suite, "properties")
        for name, value in (("verdict", report.verdict), ("model_sha256", report.model.get("sha256") or "unknown")):
            SubElement(properties, "property", name=name, value=_text(value))
        counts = dict.fromkeys(totals, 0)
        own = [check for check in report.checks if check.target == target]
        for check in own:
            by = accepted.get(check.id)
            outcome = _case(suite, check, None if by is None else f"accepted until {by.expires}: {by.statement}")
            counts["tests"] += 1
            if outcome is not None:
                counts[outcome] += 1
        _count(suite, counts, sum(check.seconds for check in own))
        totals = {name: totals[name] + counts[name] for name in totals}
    _count(root, totals, report.budget.used)
    indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + tostring(root, encoding="unicode") + "\n"


def _count(element: Element, counts: dict[str, int], seconds: float) -> None:
    for name, count in counts.items():
        element.set(name, str(count))
    element.set("time", f"{seconds:.3f}")


def _case(suite: Element, check: ScanCheck, accepted: str | None) -> str | None:
    """Add one case; returns which count it belongs to."""
    case = SubElement(
        suite, "testcase", name=_text(f"{check.detector}: {check.title}"), classname=_text(f"quantinel.{check.target}"),
        time=f"{check.seconds:.3f}",
    )  # fmt: skip
    said = "; ".join(part for part in (check.reason, check.detail, *check.notes) if part)
    if check.status == "fail" and accepted is None:
        SubElement(case, "failure", type=check.rule, message=_text(check.title)).text = _text(said)
        return "failures"
    if check.status == "pass":
        SubElement(case, "system-out").text = _text(said)
        return None
    if check.required and check.status != "fail":
        SubElement(case, "error", type=check.rule, message=_text(check.reason)).text = _text(said)
        return "errors"
    SubElement(case, "skipped", message=_text(accepted or check.reason)).text = _text(said)
    return "skipped"


def _text(value: object) -> str:
    """On one line, without characters that XML does not have."""
    return wording.one_line(value)
