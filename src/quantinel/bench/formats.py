"""One table, three forms: Markdown to read, LaTeX (booktabs) to print, CSV to compute with."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from quantinel.errors import UsageError


@dataclass(frozen=True)
class Figure:
    """A number with what is known about its spread.

    Attributes:
        value: the figure, or the mean over seeds.
        low, high: ends of the spread; None where it is unknown.
        spread: what they are: the 95 % interval of one measurement, or the smallest and largest of several seeds.
        digits: behind the point.
    """

    value: float
    low: float | None = None
    high: float | None = None
    spread: Literal["interval95", "range"] = "interval95"
    digits: int = 2

    def __str__(self) -> str:
        """``91.30 [90.7, 91.8]`` for an interval, ``91.30 (90.7 to 91.8)`` for a range."""
        shown = f"{self.value:.{self.digits}f}"
        if self.low is None or self.high is None:
            return shown
        low, high = (f"{end:.{max(self.digits - 1, 0)}f}" for end in (self.low, self.high))
        return f"{shown} [{low}, {high}]" if self.spread == "interval95" else f"{shown} ({low} to {high})"


Value = str | int | Figure | None


@dataclass(frozen=True)
class Column:
    """A column: its name on the command line and in CSV, its heading, and whether figures stand in it."""

    name: str
    title: str
    numeric: bool = False


@dataclass(frozen=True)
class Line:
    """One line.

    Attributes:
        values: one for each column.
        notes: what a reader must know about it; equal notes share a footnote.
        about: further columns of CSV, where a line has to speak for itself: commit, command.
    """

    values: tuple[Value, ...]
    notes: tuple[str, ...] = ()
    about: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A table with everything that belongs below it.

    Attributes:
        part: what it shows ("figures", "detection", "auc").
        title: heading or caption.
        columns, lines: the table.
        marked: index of the column that carries the marks of footnotes.
        below: sentences under the table: what the columns mean, the command and the versions behind it. Backticks
            mark code.
    """

    part: str
    title: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    marked: int = 0
    below: tuple[str, ...] = ()

    @property
    def notes(self) -> list[str]:
        """Footnotes in the order of their numbers, from 1."""
        return list(dict.fromkeys(note for line in self.lines for note in line.notes))


def text_of(value: Value) -> str:
    """What people read; a dash where there is nothing."""
    return "-" if value is None or value == "" else str(value)


def markdown_rows(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A bare Markdown table; pipes in cells are escaped."""
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(
        "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in row) + " |" for row in rows
    )


def markdown(table: Table) -> str:
    """The table, its footnotes and the sentences below it, without the title."""
    notes = table.notes

    def cells(line: Line) -> list[str]:
        shown = [_no_tags(text_of(value)) for value in line.values]
        marks = ", ".join(str(notes.index(note) + 1) for note in line.notes)
        shown[table.marked] += f" <sup>{marks}</sup>" if marks else ""
        return shown

    parts = [markdown_rows([column.title for column in table.columns], map(cells, table.lines))]
    parts += ["<br>\n".join(f"<sup>{number}</sup> {_no_tags(note)}" for number, note in enumerate(notes, 1))]
    parts += [" ".join(table.below)]
    return "\n\n".join(part for part in parts if part)


def _no_tags(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "'": r"\textquotesingle{}", "±": r"\(\pm\)", "×": r"\(\times\)",
    "[": "{[}", "]": "{]}",
}  # fmt: skip


def latex_text(text: str) -> str:
    """Text that LaTeX prints as it is; ``code`` in backticks becomes typewriter.

    A square bracket is put into braces: at the start of a line it would be an argument of the line before. Needs the
    package textcomp, which every LaTeX since 2020 loads.
    """
    parts = [
        "".join(_LATEX.get(letter, letter) for letter in part).replace("--", "-{}-") for part in re.split("`", text)
    ]
    if len(parts) % 2 == 0:  # a single backtick is no code
        return r"\textasciigrave{}".join(parts)
    return "".join(rf"\texttt{{{part}}}" if index % 2 else part for index, part in enumerate(parts))


def latex(table: Table) -> str:
    """A ``table`` environment with booktabs rules, footnotes and the sentences below it."""
    notes = table.notes
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{latex_text(table.title)}}}",
        rf"  \begin{{tabular}}{{{''.join('r' if column.numeric else 'l' for column in table.columns)}}}",
        r"    \toprule",
        "    " + " & ".join(latex_text(column.title) for column in table.columns) + r" \\",
        r"    \midrule",
    ]
    for line in table.lines:
        shown = [latex_text(text_of(value)) for value in line.values]
        marks = ", ".join(str(notes.index(note) + 1) for note in line.notes)
        shown[table.marked] += rf"\textsuperscript{{{marks}}}" if marks else ""
        lines.append("    " + " & ".join(shown) + r" \\")
    lines += [r"    \bottomrule", r"  \end{tabular}"]
    small = [rf"\textsuperscript{{{number}}} {latex_text(note)}" for number, note in enumerate(notes, 1)]
    small += [latex_text(sentence) for sentence in table.below]
    if small:
        lines += [r"  \par\smallskip\raggedright\footnotesize"]
        lines += [rf"  {sentence}\par" for sentence in small]
    return "\n".join([*lines, r"\end{table}"])


def csv_text(table: Table) -> str:
    """Comma-separated values after RFC 4180, with a header.

    A column of figures gives three: NAME, NAME_low and NAME_high, the 95 % interval of one seed or the smallest and
    largest of several. Footnotes are spelled out in ``notes``; ``commit`` and ``command`` say where a line is from.
    """
    about = list(dict.fromkeys(name for line in table.lines for name in line.about))
    header: list[str] = []
    for column in table.columns:
        name = column.name.replace("-", "_")
        header += [name, f"{name}_low", f"{name}_high"] if column.numeric else [name]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*header, "notes", *about])
    for line in table.lines:
        values: list[object] = []
        for column, value in zip(table.columns, line.values, strict=True):
            if not column.numeric:
                values.append("" if value is None else value)
            elif isinstance(value, Figure):
                values += [
                    "" if number is None else round(number, 4) for number in (value.value, value.low, value.high)
                ]
            else:
                values += ["" if value is None else value, "", ""]
        writer.writerow([*values, "; ".join(line.notes), *(line.about.get(name, "") for name in about)])
    return stream.getvalue()


def _documents(render: Callable[[Table], str], titles: bool) -> Callable[[Sequence[Table]], str]:
    def all_of(tables: Sequence[Table]) -> str:
        several = titles and len(tables) > 1
        shown = [f"**{table.title}**\n\n{render(table)}" if several else render(table) for table in tables]
        return "\n\n".join(shown) + "\n"

    return all_of


def _one_csv(tables: Sequence[Table]) -> str:
    if len(tables) > 1:
        raise UsageError(f"a CSV file holds one table; choose one of {', '.join(table.part for table in tables)}")
    return "".join(csv_text(table) for table in tables)


FORMATS: dict[str, Callable[[Sequence[Table]], str]] = {
    "markdown": _documents(markdown, True),
    "latex": _documents(latex, False),
    "csv": _one_csv,
}
"""Tables to one text, by the name of the format. CSV takes one table only and raises UsageError for several."""
