"""The report as a page for a terminal; the command line prints it.

Names go into `rich.text.Text`, which reads no markup, with their control characters spelled out, so that no name can
move the cursor or colour the screen.
"""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from quantinel.audit.report import Check, Rate, Report
from quantinel.reports import facts, wording

_COLOURS = {"PASS": "green", "FAIL": "red", "INCONCLUSIVE": "yellow"}
_SYMBOLS = {"PASS": "✓", "FAIL": "✗", "INCONCLUSIVE": "?", "pass": "✓", "fail": "✗", "not_run": "–"}
_STATUS_STYLES = {"pass": "green", "fail": "bold red", "not_run": "yellow"}
_LEVEL_STYLES = {"info": "dim", "warning": "yellow", "error": "bold red"}


def summary(report: Report) -> RenderableType:
    """Verdict, comparison, checks, limits and next steps.

    Args:
        report: what to show.
    """
    parts: list[RenderableType] = [_verdict(report), _comparison(report)]
    parts += _list("Checks", [_check(check) for check in report.checks if check.status != "not_run"])
    parts += _list("Could not run", [_check(check) for check in report.checks if check.status == "not_run"])
    parts += _list("Findings about the input", list(_findings(report)))
    parts += _list("What this run could not see", [_item("–", "yellow", _prose(line)) for line in report.not_checked])
    parts += _list("Next", [_item("›", "cyan", _step(step)) for step in report.next_steps])
    return Group(*parts)


def _verdict(report: Report) -> Panel:
    colour = _COLOURS[report.verdict]
    counts = facts.count_checks(report.checks)
    ran = f"{counts.ran} of {len(report.checks)} checks ran: {counts.passed} passed, {counts.failed} failed"
    text = Text.assemble(
        (f"{_SYMBOLS[report.verdict]} {report.verdict}", f"bold {colour}"),
        "  ",
        (wording.one_line(facts.model_name(report)), "bold"),
        "\n",
        _prose(report.summary),
        "\n",
        (f"{ran}, {counts.not_run} could not run." if counts.not_run else f"{ran}.", "dim"),
        overflow="fold",
    )
    return Panel(text, border_style=colour, padding=(0, 1))


def _comparison(report: Report) -> RenderableType:
    if not report.evaluation:
        return Text("Nothing was evaluated.", "yellow")
    table = Table(
        box=box.SIMPLE_HEAD,
        caption="percent, 95 % interval, (n images)",
        caption_justify="left",
        caption_style="dim",
        padding=(0, 1),
    )
    table.add_column("Model")
    for column in ("Accuracy", "Attack success", "Agreement with float"):
        table.add_column(column, justify="right")
    for row in report.evaluation:
        variant = Text.assemble((wording.VARIANTS[row.variant], "bold"), "\n", (wording.BACKENDS[row.backend], "dim"))
        table.add_row(variant, *(_rate(rate) for rate in (row.cda, row.asr, row.agreement)))
    return table


def _rate(rate: Rate | None) -> Text:
    if rate is None or rate.percent is None:
        return Text(wording.NOT_MEASURED, "dim")
    return Text.assemble((wording.rate(rate), "bold"), "\n", (f"{wording.interval(rate)} ({rate.n})", "dim"))


def _check(check: Check) -> RenderableType:
    style = _STATUS_STYLES[check.status]
    text = Text.assemble((wording.STATUSES[check.status], style), "  ", _prose(check.title), overflow="fold")
    if check.status != "pass":
        text.append(" (required)" if check.required else " (optional)", style if check.required else "dim")
    if check.statistic is not None:
        limit = "" if check.threshold is None else f", limit {wording.figure(check.threshold)}"
        text.append(f"  measured {wording.figure(check.statistic)}{limit}", "dim")
    if check.detail and check.status != "pass":
        text.append("\n").append_text(_prose(check.detail))
    return _item(_SYMBOLS[check.status], style, text)


def _findings(report: Report) -> Iterator[RenderableType]:
    for finding in report.findings:
        style = _LEVEL_STYLES[finding.level]
        text = Text.assemble(
            (wording.LEVELS[finding.level], style), "  ", _prose(finding.title), "\n", _prose(finding.detail)
        )
        yield _item("!", style, text)


def _list(title: str, items: list[RenderableType]) -> list[RenderableType]:
    return [Text(f"\n{title}", "bold"), *items] if items else []


def _item(symbol: str, style: str, text: Text) -> RenderableType:
    row = Table.grid(padding=(0, 1))
    row.add_column(width=1)
    row.add_column(overflow="fold")
    row.add_row(Text(symbol, style), text)
    return Padding(row, (0, 0, 0, 1))


def _prose(text: str) -> Text:
    parts = wording.segments(wording.one_line(text))
    return Text.assemble(*((part, "cyan" if is_code else "") for part, is_code in parts), overflow="fold")


def _step(step: str) -> Text:
    return Text(wording.one_line(step), "bold cyan", overflow="fold") if wording.is_command(step) else _prose(step)
