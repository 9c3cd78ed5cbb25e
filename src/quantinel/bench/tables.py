"""The tables of a suite: figures beside those of papers, detectors, and what has not run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from quantinel.bench.cells import Cell
from quantinel.bench.columns import COLUMNS, Entry, default_columns, entries
from quantinel.bench.detection import areas_table, scores_table
from quantinel.bench.formats import Figure, Line, Table, Value
from quantinel.bench.groups import grouped
from quantinel.bench.methods import known
from quantinel.bench.provenance import about, below
from quantinel.bench.rows import ResultRow
from quantinel.bench.suite import Suite

PARTS = ("figures", "detection", "auc")


@dataclass(frozen=True)
class TableOptions:
    """What a table shows.

    Attributes:
        columns: names in `COLUMNS`; without them every column that says something.
        sort: names of columns; a minus in front turns the order round.
        only: patterns of cell ids; a line is shown if one of its cells matches.
        missing: only lines with a cell that was not measured.
    """

    columns: tuple[str, ...] = ()
    sort: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    missing: bool = False


def suite_tables(
    suite: Suite, cells: Sequence[Cell], rows: Sequence[ResultRow], options: TableOptions = TableOptions()
) -> list[Table]:
    """Tables of a suite: figures, detector scores and their AUC; those without lines are left out.

    Args:
        suite: validated.
        cells: all of its cells, those that ``options.only`` leaves out included: they are what others compare with.
        rows: of its results file, oldest first.
        options: columns, order, choice.

    Raises:
        UsageError: an unknown column.
    """
    for name in (*options.columns, *(name.removeprefix("-") for name in options.sort)):
        known(name, COLUMNS, "column")
    found = entries(suite, grouped(suite, cells, rows))
    shown = [entry for entry in found if _chosen(entry, options)]
    figures = [entry for entry in shown if entry.group.cell.detector is None]
    scored = [entry for entry in shown if entry.group.cell.detector is not None]
    tables: list[Table | None] = []
    if figures:
        tables.append(_figures(suite, figures, options))
    if scored:
        tables.append(scores_table(suite, scored, options.only))
        tables.append(None if options.missing else areas_table(suite, scored, options.only))
    return [table for table in tables if table is not None]


def _chosen(entry: Entry, options: TableOptions) -> bool:
    cells = entry.group.cells
    named = not options.only or any(fnmatchcase(cell.id, pattern) for cell in cells for pattern in options.only)
    return named and not (options.missing and entry.group.complete)


def _figures(suite: Suite, shown: list[Entry], options: TableOptions) -> Table:
    names = list(options.columns) or default_columns(suite, shown)
    for column in reversed(options.sort):
        shown = _sorted(shown, column)
    lines = []
    for entry in shown:
        values = tuple(COLUMNS[name][1](entry) for name in names)
        note = () if entry.published is None or not entry.published.note else (f"paper: {entry.published.note}",)
        lines.append(Line(values, (*entry.group.notes, *note), about(entry.group)))
    columns = tuple(COLUMNS[name][0] for name in names)
    marked = names.index("defense") if "defense" in names else 0
    explained = (*_explained(suite, shown, names), *below(suite, shown, options.only))
    return Table("figures", suite.title, columns, tuple(lines), marked, explained)


def _sorted(shown: list[Entry], column: str) -> list[Entry]:
    """By one column; lines without a value come last either way."""
    read = COLUMNS[column.removeprefix("-")][1]
    filled = [entry for entry in shown if read(entry) is not None]
    empty = [entry for entry in shown if read(entry) is None]
    return sorted(filled, key=lambda entry: _key(read(entry)), reverse=column.startswith("-")) + empty


def _key(value: Value) -> tuple[int, float, str]:
    """Numbers by size, texts by letters."""
    if isinstance(value, Figure):
        return 0, value.value, ""
    return (0, value, "") if isinstance(value, int) else (1, 0.0, value or "")


def _explained(suite: Suite, shown: list[Entry], names: list[str]) -> tuple[str, ...]:
    """What the columns mean, as far as they are shown."""
    sentences = []
    counts = dict.fromkeys(entry.counted for entry in shown if entry.counted is not None)
    rows = [row for entry in shown for row in entry.group.measured]
    if "n" not in names and len(counts) == 1 and rows:
        triggered = f", ASR on {rows[0].n_triggered}" if rows[0].n_triggered else ""
        sentences.append(f"CDA on {rows[0].n_clean} images{triggered}.")
    spreads = {
        value.spread
        for entry in shown
        for name in names
        if isinstance(value := COLUMNS[name][1](entry), Figure) and value.low is not None
    }
    sentences += ["In brackets: 95 % Wilson interval."] if "interval95" in spreads else []
    sentences += ["Mean over seeds (smallest to largest)."] if "range" in spreads else []
    if "der" in names:
        sentences.append(
            "DER: (max(0, fall of ASR) - max(0, fall of CDA) + 100) / 2 against nearest rounding; 50 is no effect."
        )
    if {"paper-cda", "paper-asr", "paper-ta", "standing"} & set(names):
        sources: dict[str, None] = {}
        for entry in shown:
            if entry.published is not None:
                sources[f"{entry.published.source} (reproduced: within {entry.published.tolerance:g} points)"] = None
        sentences += [f"Paper: {'; '.join(sources)}."] if sources else []
    return tuple(sentences)
