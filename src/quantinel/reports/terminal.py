"""The report as a page for a terminal; the command line prints it."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from quantinel.audit.report import Check, Rate, Report
from quantinel.reports import facts, wording
from quantinel.reports.terminal_parts import (
    LEVEL_STYLES,
    STATUS_STYLES,
    SYMBOLS,
    item,
    listed,
    prose,
    step,
    verdict_panel,
)


def summary(report: Report) -> RenderableType:
    """Verdict, comparison, checks, limits and next steps.

    Args:
        report: what to show.
    """
    parts: list[RenderableType] = [_verdict(report), _comparison(report)]
    parts += listed("Checks", [_check(check) for check in report.checks if check.status != "not_run"])
    parts += listed("Could not run", [_check(check) for check in report.checks if check.status == "not_run"])
    parts += listed("Findings about the input", list(_findings(report)))
    parts += listed("What this run could not see", [item("–", "yellow", prose(line)) for line in report.not_checked])
    parts += listed("Next", [item("›", "cyan", step(line)) for line in report.next_steps])
    return Group(*parts)


def _verdict(report: Report) -> RenderableType:
    counts = facts.count_checks(report.checks)
    ran = f"{counts.ran} of {len(report.checks)} checks ran: {counts.passed} passed, {counts.failed} failed"
    counted = f"{ran}, {counts.not_run} could not run." if counts.not_run else f"{ran}."
    return verdict_panel(report.verdict, facts.model_name(report), report.summary, counted)


def _comparison(report: Report) -> RenderableType:
    if not report.evaluation:
        return Text("Nothing was evaluated.", "yellow")
    table = Table(
        box=box.SIMPLE_HEAD,
        caption="percent, 95 % interval, (n images); bare: the same images without the trigger, answered with the "
        "attacker's class all the same",
        caption_justify="left",
        caption_style="dim",
        padding=(0, 1),
    )
    table.add_column("Model")
    for column in ("Accuracy", "Attack success", "Agreement with float"):
        table.add_column(column, justify="right")
    for row in report.evaluation:
        variant = Text.assemble((wording.VARIANTS[row.variant], "bold"), "\n", (wording.BACKENDS[row.backend], "dim"))
        bare = wording.bare(row.base_rate)
        success = _rate(row.asr).append(f"\n{bare}" if bare else "", "dim")
        table.add_row(variant, _rate(row.cda), success, _rate(row.agreement))
    return table


def _rate(rate: Rate | None) -> Text:
    if rate is None or rate.percent is None:
        return Text(wording.NOT_MEASURED, "dim")
    return Text.assemble((wording.rate(rate), "bold"), "\n", (f"{wording.interval(rate)} ({rate.n})", "dim"))


def _check(check: Check) -> RenderableType:
    style = STATUS_STYLES[check.status]
    text = Text.assemble((wording.STATUSES[check.status], style), "  ", prose(check.title), overflow="fold")
    if check.status != "pass":
        text.append(" (required)" if check.required else " (optional)", style if check.required else "dim")
    if check.statistic is not None:
        limit = "" if check.threshold is None else f", limit {wording.figure(check.threshold)}"
        text.append(f"  measured {wording.figure(check.statistic)}{limit}", "dim")
    if check.detail and check.status != "pass":
        text.append("\n").append_text(prose(check.detail))
    return item(SYMBOLS[check.status], style, text)


def _findings(report: Report) -> Iterator[RenderableType]:
    for finding in report.findings:
        style = LEVEL_STYLES[finding.level]
        text = Text.assemble(
            (wording.LEVELS[finding.level], style), "  ", prose(finding.title), "\n", prose(finding.detail)
        )
        yield item("!", style, text)
