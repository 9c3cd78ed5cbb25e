"""``quantinel report``: render a report of a hardening run or of a scan again."""

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
        Path,
        typer.Argument(
            metavar="REPORT.json", help="Written by `quantinel harden` or `quantinel scan`.", show_default=False
        ),
    ],
    form: Annotated[
        str,
        typer.Option(
            "--format",
            "-f",
            metavar="html|sarif|json|markdown|junit",
            help="markdown: of a hardening run; junit: of a scan.",
        ),
    ] = "html",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="File to write or replace. [default: stdout]")
    ] = None,
) -> None:
    """Render a report as HTML, SARIF, JSON, Markdown (hardening runs) or JUnit XML (scans)."""
    from quantinel.audit.scan_report import read_any_report
    from quantinel.files import check_file, write_file
    from quantinel.reports.render import RENDERERS, SCAN_RENDERERS, render

    known = list(RENDERERS | SCAN_RENDERERS)
    if form not in known:
        raise UsageError(f"unknown format {form!r}; choose one of {', '.join(known)}")
    if output is not None:
        check_file(output)
    text = render(read_any_report(path), form)
    if output is None:
        print(text, end="" if text.endswith("\n") else "\n")
    else:
        write_file(output, text.encode("utf-8"))
