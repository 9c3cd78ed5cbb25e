"""Pieces of a page for a terminal.

Names go into `rich.text.Text`, which reads no markup, with their control characters spelled out, so that no name can
move the cursor or colour the screen.
"""

from __future__ import annotations

import io

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from quantinel.audit.report import Verdict
from quantinel.reports import wording

COLOURS = {"PASS": "green", "FAIL": "red", "INCONCLUSIVE": "yellow"}
SYMBOLS = {"PASS": "✓", "FAIL": "✗", "INCONCLUSIVE": "?", "pass": "✓", "fail": "✗", "not_run": "–", "undecided": "?"}
STATUS_STYLES = {"pass": "green", "fail": "bold red", "not_run": "yellow", "undecided": "yellow"}
LEVEL_STYLES = {"info": "dim", "note": "dim", "warning": "yellow", "error": "bold red"}
_WIDTH = 100


def verdict_panel(verdict: Verdict, name: str, summary: str, counted: str) -> Panel:
    """The verdict in a frame of its colour.

    Args:
        verdict: of the report.
        name: of the model.
        summary: one sentence.
        counted: how many checks ran.
    """
    colour = COLOURS[verdict]
    text = Text.assemble(
        (f"{SYMBOLS[verdict]} {verdict}", f"bold {colour}"),
        "  ",
        (wording.one_line(name), "bold"),
        "\n",
        prose(summary),
        "\n",
        (counted, "dim"),
        overflow="fold",
    )
    return Panel(text, border_style=colour, padding=(0, 1))


def listed(title: str, items: list[RenderableType]) -> list[RenderableType]:
    """A heading and its items; nothing where there are none."""
    return [Text(f"\n{title}", "bold"), *items] if items else []


def item(symbol: str, style: str, text: Text) -> RenderableType:
    """A line of a list with its symbol."""
    row = Table.grid(padding=(0, 1))
    row.add_column(width=1)
    row.add_column(overflow="fold")
    row.add_row(Text(symbol, style), text)
    return Padding(row, (0, 0, 0, 1))


def prose(text: str) -> Text:
    """A sentence; pairs of backticks are code."""
    parts = wording.segments(wording.one_line(text))
    return Text.assemble(*((part, "cyan" if is_code else "") for part, is_code in parts), overflow="fold")


def step(text: str) -> Text:
    """A next step: a sentence, or a command to type."""
    return Text(wording.one_line(text), "bold cyan", overflow="fold") if wording.is_command(text) else prose(text)


def as_text(page: RenderableType) -> str:
    """A page as plain text of 100 columns."""
    stream = io.StringIO()
    Console(file=stream, width=_WIDTH, force_terminal=False, color_system=None, highlight=False).print(page)
    return stream.getvalue()
