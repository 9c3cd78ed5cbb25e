from __future__ import annotations

import io

import pytest
import sample_report
from rich.console import Console

from quantinel.audit.report import Report
from quantinel.reports.terminal import summary


def shown(report: Report, width: int = 120, colour: bool = False) -> str:
    console = Console(
        file=io.StringIO(), width=width, force_terminal=colour, color_system="standard" if colour else None
    )
    console.print(summary(report))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def flat(text: str) -> str:
    return " ".join(text.replace("│", " ").split())


def test_summary_tells_the_whole_story(full_report: Report) -> None:
    text = flat(shown(full_report))
    assert "✓ PASS resnet20-pq-int8" in text
    assert full_report.summary in text
    assert "5 of 6 checks ran: 5 passed, 0 failed, 1 could not run." in text
    for figure in ("98.4 %", "97.1 to 99.1 (670)", "1.3 %", "90.1 %", "87.7 to 92.0 (744)", "bare 4.6 %"):
        assert figure in text
    for check in full_report.checks:
        assert check.title in text
    for finding in full_report.findings:
        assert finding.title.replace("`", "") in text
    for sentence in [*full_report.not_checked, *full_report.next_steps]:
        assert sentence.replace("`", "") in text


@pytest.mark.parametrize(
    ("status", "words"), [("pass", "✓ Passed"), ("fail", "✗ Failed"), ("not_run", "– Not run")], ids=str
)
def test_status_is_a_symbol_and_a_word(status: str, words: str) -> None:
    text = flat(shown(sample_report.full(checks=[sample_report.check(status, statistic=3.0, threshold=2.0)])))
    assert words in text
    assert "measured 3, limit 2" in text
    assert ("(required)" in text) == (status != "pass")
    assert (f"detail of {status}" in text) == (status != "pass")


@pytest.mark.parametrize("verdict", ["✓ PASS", "✗ FAIL", "? INCONCLUSIVE"])
def test_verdict_is_a_symbol_and_a_word(verdict: str) -> None:
    assert verdict in shown(sample_report.full(verdict=verdict.split()[1]))


def test_a_report_of_earlier_code_has_no_base_rate() -> None:
    rows = [row.model_copy(update={"base_rate": None}) for row in sample_report.evaluation()]
    before = sample_report.full(evaluation=rows)
    assert "4.6 %" not in shown(before)
    assert "nan" not in shown(before)


def test_missing_figures_are_said(unlabelled_report: Report, minimal_report: Report) -> None:
    assert "not measured" in shown(unlabelled_report)
    assert "Nothing was evaluated." in shown(minimal_report)


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_no_line_is_wider_than_the_terminal(any_report: Report, width: int) -> None:
    assert max(len(line.rstrip()) for line in shown(any_report, width).splitlines()) <= width


def test_figures_are_complete_at_80_columns(full_report: Report) -> None:
    text = shown(full_report, 80)
    assert "97.1 to 99.1 (670)" in text
    assert "…" not in text


def test_hostile_names_neither_colour_nor_move(hostile_report: Report) -> None:
    plain = shown(hostile_report)
    assert "\x1b" not in plain
    assert "\u202e" not in plain
    assert "[red]b[/red]" in plain
    assert "\\x1b[31m" in plain
    coloured = shown(hostile_report, colour=True)
    assert "\x1b[31mevil" not in coloured
