"""The report of a scan as one HTML page that stands alone; `html` says how foreign names are kept harmless."""

from __future__ import annotations

from functools import cache

from jinja2 import Environment

from quantinel.audit.rules import NOT_ASSESSABLE, RULES
from quantinel.audit.scan_report import ScanCheck, ScanFinding, ScanReport, SchemeResult
from quantinel.reports import pages
from quantinel.reports.plots import ClassBar, ScoreBar

_CLASSES_SHOWN = 20
_LAYERS_SHOWN = 10


def render_scan_html(report: ScanReport) -> str:
    """Render the page."""
    required = [check for check in report.checks if check.required]
    measured = [scheme for scheme in report.schemes if scheme.agreement is not None]
    found = [finding for finding in report.findings if finding.rule != NOT_ASSESSABLE]
    suspects = [check.suspect_class for check in report.checks if check.suspect_class and _speaks(check)]
    return (
        _environment()
        .get_template("scan.html.j2")
        .render(
            report=report,
            style=pages.style(pages.template("report.css"), pages.template("scan.css")),
            request={key: value for key, value in report.request.items() if key != "command"},
            required=required,
            unjudged=[check for check in required if check.status in ("undecided", "not_run")],
            found=found,
            warnings=sum(item.level == "warning" and item.suppressed is None for item in found),
            suspects=list(dict.fromkeys(suspects)),
            lowest=min(measured, key=_agreement, default=None),
            rules=RULES,
            explained=_first_of_its_rule(found),
            targets=list(dict.fromkeys(check.target for check in report.checks)),
            outcomes=_outcomes(report.checks),
            classes_shown=_CLASSES_SHOWN,
            shown_classes=_shown_classes,
            shown_scores=_shown_scores,
            worst_layers=_worst_layers,
        )
    )


def _first_of_its_rule(findings: list[ScanFinding]) -> list[ScanFinding]:
    """One finding a rule, beside which the rule is explained."""
    return list({finding.rule: finding for finding in reversed(findings)}.values())


def _outcomes(checks: list[ScanCheck]) -> list[tuple[str, list[ScanCheck | None]]]:
    """By detector, its check on every target."""
    targets = dict.fromkeys(check.target for check in checks)
    found = {(check.detector, check.target): check for check in checks}
    return [
        (name, [found.get((name, target)) for target in targets])
        for name in dict.fromkeys(check.detector for check in checks)
    ]


def _speaks(check: ScanCheck) -> bool:
    return check.status == "fail" or check.alarm


def _agreement(scheme: SchemeResult) -> float:
    rate = scheme.agreement
    return 100.0 if rate is None or rate.percent is None else rate.percent


def _shown_classes(scheme: SchemeResult) -> list[ClassBar]:
    """All classes, or those whose share changes most, in the order of their numbers."""
    changing = sorted(scheme.classes, key=lambda share: -abs(share.compressed - share.floating))[:_CLASSES_SHOWN]
    shown = sorted(changing, key=lambda share: share.index)
    return [ClassBar(share.name, share.floating, share.compressed) for share in shown]


def _shown_scores(check: ScanCheck) -> list[ScoreBar]:
    """All classes, or those of the highest figures, in the order of their numbers."""
    highest = sorted(check.by_class, key=lambda item: -item.score)[:_CLASSES_SHOWN]
    return [
        ScoreBar(item.name, item.score, item.name == check.suspect_class)
        for item in sorted(highest, key=lambda item: item.index)
    ]


def _worst_layers(check: ScanCheck) -> dict[str, float]:
    """The layers of the highest figures."""
    highest = sorted(check.by_layer, key=lambda layer: -layer.score)[:_LAYERS_SHOWN]
    return {layer.name: layer.score for layer in highest}


@cache
def _environment() -> Environment:
    return pages.environment()
