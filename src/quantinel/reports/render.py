"""All renderings by the name of their format."""

from __future__ import annotations

import json
from collections.abc import Callable

from quantinel.audit.report import Report
from quantinel.errors import UsageError
from quantinel.reports.html import render_html
from quantinel.reports.model_card import render_model_card
from quantinel.reports.sarif import render_sarif


def _sarif(report: Report) -> str:
    return json.dumps(render_sarif(report), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _markdown(report: Report) -> str:
    return render_model_card(report, [])


def _json(report: Report) -> str:
    return report.model_dump_json(indent=2) + "\n"


RENDERERS: dict[str, Callable[[Report], str]] = {
    "html": render_html,
    "sarif": _sarif,
    "markdown": _markdown,
    "json": _json,
}


def render(report: Report, format: str) -> str:
    """Render ``report`` as text.

    Args:
        report: what to render.
        format: a key of `RENDERERS`.

    Raises:
        UsageError: the format is not known.
    """
    if format not in RENDERERS:
        raise UsageError(f"format {format!r} is not known; choose one of {', '.join(RENDERERS)}")
    return RENDERERS[format](report)
