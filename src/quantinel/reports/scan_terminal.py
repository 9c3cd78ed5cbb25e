"""The report of a scan as a page for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from quantinel.audit.rules import NOT_ASSESSABLE
from quantinel.audit.scan_report import ScanCheck, ScanFinding, ScanReport
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


def summary(report: ScanReport) -> RenderableType:
    """Verdict, checks, findings, limits and next steps.

    Args:
        report: what to show.
    """
    parts: list[RenderableType] = [
        verdict_panel(report.verdict, facts.model_name(report), report.summary, facts.counted(report.checks)),
        _checks(report),
    ]
    parts += listed("Findings", list(_findings(report)))
    parts += listed("Could not judge", list(_reasons(report)))
    parts += listed("Accepted beforehand", list(_suppressions(report)))
    parts += listed("What the time budget cost", [item("–", "yellow", prose(line)) for line in report.budget.cost])
    parts += listed("What this scan could not see", [item("–", "yellow", prose(line)) for line in _limits(report)])
    parts += listed("Next", [item("›", "cyan", step(line)) for line in report.next_steps])
    return Group(*parts)


def _checks(report: ScanReport) -> RenderableType:
    if not report.checks:
        return Text("Nothing was checked.", "yellow")
    table = Table(
        box=box.SIMPLE_HEAD, padding=(0, 1), caption_justify="left", caption_style="dim",
        caption="* required for a PASS; limit: a calibrated threshold with its false alarms among harmless models, or "
        "an engineering bound",
    )  # fmt: skip
    table.add_column("Check", overflow="fold")
    table.add_column("On", overflow="fold")
    table.add_column("Result", no_wrap=True)
    table.add_column("Measured", justify="right", overflow="fold")
    table.add_column("Limit", justify="right", overflow="fold")
    for check in report.checks:
        style = LEVEL_STYLES["warning"] if check.alarm else STATUS_STYLES[check.status]
        name = Text(wording.one_line(check.detector) + (" *" if check.required else ""))
        word = "! warns" if check.alarm else f"{SYMBOLS[check.status]} {wording.SCAN_STATUSES[check.status]}"
        table.add_row(name, Text(wording.one_line(check.target)), Text(word, style), _measured(check), _limit(check))
    return table


def _measured(check: ScanCheck) -> Text:
    if check.value is None:
        return Text("–", "dim")
    name = wording.one_line(wording.label(check.statistic)).lower()
    return Text.assemble((wording.figure(check.value), "bold"), (f" {name}", "dim"))


def _limit(check: ScanCheck) -> Text:
    if check.threshold is None:
        return Text("none" if check.status == "undecided" else "–", "dim")
    rate = check.false_positives
    said = "bound" if rate is None else f"({rate.hits} of {rate.n} harmless)"
    return Text.assemble(wording.figure(check.threshold), (f" {said}", "dim"))


def _findings(report: ScanReport) -> Iterator[RenderableType]:
    for finding in report.findings:
        if finding.rule == NOT_ASSESSABLE and finding.suppressed is None:
            continue  # said under "Could not judge"
        yield _finding(finding)


def _finding(finding: ScanFinding) -> RenderableType:
    style = "dim" if finding.suppressed else LEVEL_STYLES[finding.level]
    text = Text.assemble(
        (f"{finding.rule} {wording.SCAN_LEVELS[finding.level]}", style), "  ", prose(finding.title),
        (f"  [{wording.one_line(finding.target)}]", "dim"), "\n", prose(finding.detail), overflow="fold",
    )  # fmt: skip
    if finding.suppressed is not None:
        text.append(f"\naccepted until {finding.suppressed.expires}: ", "yellow")
        text.append_text(prose(finding.suppressed.statement))
    return item("–" if finding.suppressed else "!", style, text)


def _reasons(report: ScanReport) -> Iterator[RenderableType]:
    """Why checks could not judge, those with the same reason together."""
    for reason in dict.fromkeys(check.reason for check in report.checks if check.reason):
        own = [check for check in report.checks if check.reason == reason]
        style = STATUS_STYLES[own[0].status]
        names = wording.one_line(", ".join(check.id + (" *" if check.required else "") for check in own))
        yield item(SYMBOLS[own[0].status], style, Text.assemble((names, style), "  ", prose(reason), overflow="fold"))


def _suppressions(report: ScanReport) -> Iterator[RenderableType]:
    for entry in report.suppressions:
        if entry.outcome != "applied":
            yield item("!", "yellow", prose(f"{entry.rule} {wording.OUTCOMES[entry.outcome]} ({entry.expires}): "
                                            f"{entry.statement}"))  # fmt: skip


def _limits(report: ScanReport) -> list[str]:
    """What could not be seen; reasons of single checks stand above."""
    return [line for line in report.not_checked if not line.startswith(tuple(check.id for check in report.checks))]
