"""All renderings by the name of their format."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from quantinel.audit.report import Report
from quantinel.audit.scan_report import ScanReport
from quantinel.errors import UsageError
from quantinel.reports.html import render_html
from quantinel.reports.junit import render_junit
from quantinel.reports.model_card import render_model_card
from quantinel.reports.sarif import render_sarif
from quantinel.reports.scan_html import render_scan_html
from quantinel.reports.scan_sarif import render_scan_sarif


def _log(log: dict[str, Any]) -> str:
    return json.dumps(log, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _sarif(report: Report) -> str:
    return _log(render_sarif(report))


def _scan_sarif(report: ScanReport) -> str:
    return _log(render_scan_sarif(report))


def _markdown(report: Report) -> str:
    return render_model_card(report, [])


def _json(report: Report | ScanReport) -> str:
    return report.model_dump_json(indent=2) + "\n"


RENDERERS: dict[str, Callable[[Report], str]] = {
    "html": render_html,
    "sarif": _sarif,
    "markdown": _markdown,
    "json": _json,
}


SCAN_RENDERERS: dict[str, Callable[[ScanReport], str]] = {
    "html": render_scan_html,
    "sarif": _scan_sarif,
    "junit": render_junit,
    "json": _json,
}


def render(report: Report | ScanReport, format: str) -> str:
    """Render ``report`` as text.

    Args:
        report: of a hardening run or of a scan.
        format: a key of `RENDERERS` or of `SCAN_RENDERERS`.

    Raises:
        UsageError: the format is not known for this kind of report.
    """
    renderers = SCAN_RENDERERS if isinstance(report, ScanReport) else RENDERERS
    if format not in renderers:
        kind = "a scan report" if isinstance(report, ScanReport) else "a report of `quantinel harden`"
        raise UsageError(f"format {format!r} is not known for {kind}; choose one of {', '.join(renderers)}")
    if isinstance(report, ScanReport):
        return SCAN_RENDERERS[format](report)
    return RENDERERS[format](report)
