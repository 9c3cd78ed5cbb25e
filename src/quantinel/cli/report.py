"""``quantinel report``: render a report again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quantinel.cli import shared
from quantinel.errors import UsageError

EPILOG = shared.example(
    "quantinel report out/report.json -o report.html", "quantinel report out/report.json -f markdown"
)


def report(
    path: Annotated[
        Path, typer.Argument(metavar="REPORT.json", help="Written by `quantinel harden`.", show_default=False)
    ],
    form: Annotated[
        str, typer.Option("--format", "-f", metavar="html|sarif|markdown|json", help="What to render.")
    ] = "html",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="File to write or replace. [default: stdout]")
    ] = None,
) -> None:
    """Render a report as HTML, SARIF, Markdown or JSON."""
    from quantinel.audit.report import read_report
    from quantinel.files import write_file
    from quantinel.reports.render import RENDERERS

    if form not in RENDERERS:
        raise UsageError(f"unknown format {form!r}; choose one of {', '.join(RENDERERS)}")
    text = RENDERERS[form](read_report(path))
    if output is None:
        print(text, end="" if text.endswith("\n") else "\n")
    else:
        write_file(output, text.encode("utf-8"))
