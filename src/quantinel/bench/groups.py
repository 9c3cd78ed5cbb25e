"""Cells that differ in nothing but the seed, with their rows: one line of a table."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from quantinel.bench.cells import Cell
from quantinel.bench.formats import Figure
from quantinel.bench.resolved import resolved
from quantinel.bench.rows import ResultRow, sha256_of
from quantinel.bench.suite import Suite

_WORDS = {"ok": "ok", "failed": "failed", "gate_failed": "no victim"}


@dataclass(frozen=True)
class Group:
    """The seeds of one line.

    Attributes:
        cells: of the suite, one for each seed.
        rows: theirs; None where there is none.
        outdated: whether a row was measured under other settings than the suite has now.
    """

    cells: tuple[Cell, ...]
    rows: tuple[ResultRow | None, ...]
    outdated: tuple[bool, ...]

    @property
    def cell(self) -> Cell:
        """The first seed's: all that the seeds have in common."""
        return self.cells[0]

    @property
    def measured(self) -> list[ResultRow]:
        """Rows whose figures count; those of failed attempts only where there are no others."""
        found = [row for row in self.rows if row is not None]
        return [row for row in found if row.status == "ok"] or [row for row in found if row.status == "gate_failed"]

    @property
    def complete(self) -> bool:
        """Whether every seed was measured under the suite's settings."""
        return all(row is not None and row.status == "ok" for row in self.rows) and not any(self.outdated)

    @property
    def status(self) -> str:
        """``ok``, ``failed``, ``no victim``, ``not run``, or how many of the seeds were measured."""
        counts = Counter("not run" if row is None else _WORDS[row.status] for row in self.rows)
        if len(counts) == 1:
            return next(iter(counts))
        return f"{counts['ok']} of {len(self.rows)} seeds"

    def figure(self, name: str) -> Figure | None:
        """A field of the rows with its interval; over several seeds the mean with its range."""
        return self.averaged(
            lambda row: getattr(row, name), interval=lambda row: getattr(row, f"{name}_interval", None)
        )

    def averaged(
        self,
        value: Callable[[ResultRow], float | None],
        interval: Callable[[ResultRow], tuple[float, float] | None] = lambda _: None,
        digits: int = 2,
    ) -> Figure | None:
        """The same for any figure of a row; None where no seed has it."""
        found = [(number, interval(row)) for row in self.measured if (number := value(row)) is not None]
        if not found:
            return None
        numbers = [number for number, _ in found]
        if len(numbers) == 1:
            low, high = found[0][1] or (None, None)
            return Figure(numbers[0], low, high, "interval95", digits)
        return Figure(sum(numbers) / len(numbers), min(numbers), max(numbers), "range", digits)

    @property
    def notes(self) -> tuple[str, ...]:
        """Why a seed has no figures, or figures that do not count; empty if all is well."""
        notes: dict[str, None] = {}
        for cell, row, outdated in zip(self.cells, self.rows, self.outdated, strict=True):
            seed = f"seed {cell.seed}: " if len(self.cells) > 1 else ""
            if row is None:
                notes[f"{seed}not run"] = None
            elif row.status == "failed":
                notes[f"{seed}failed: {without_paths(row.error or 'no reason was given')}"] = None
            elif row.status == "gate_failed":
                left_out = " (not in the mean)" if self.measured[0].status == "ok" else "; figures of the attempt"
                notes[f"{seed}the attack made no victim{left_out}: {without_paths(row.error or 'no reason')}"] = None
            if outdated:
                notes[f"{seed}measured with other settings than the suite has now"] = None
        return () if list(notes) == ["not run"] else tuple(notes)


def without_paths(text: str) -> str:
    """Errors name files of the machine that ran; a table names the file without its folders."""
    return re.sub(r"(?<![\w.:/])/(?:[^\s/:;,'\"()]+/)+(?=[^\s/]*)", "", text)


def grouped(suite: Suite, cells: Sequence[Cell], rows: Iterable[ResultRow]) -> list[Group]:
    """Lines of a suite's tables, in the order of its cells.

    The newest row of a cell counts; one that was measured under the suite's present settings goes before newer ones
    of other settings.

    Args:
        suite: which asks for the cells.
        cells: see `quantinel.bench.cells.expand`.
        rows: of its results file, oldest first; rows of other cells are ignored.
    """
    every: dict[str, list[ResultRow]] = {}
    for row in rows:
        every.setdefault(row.cell, []).append(row)
    lines: dict[tuple[object, ...], list[tuple[Cell, ResultRow | None, bool]]] = {}
    for cell in cells:
        present = sha256_of(resolved(suite, cell))
        found = every.get(cell.id, [])
        current = [row for row in found if row.config_sha256 == present]
        chosen = current or found
        newest = chosen[-1] if chosen else None
        key = (cell.model, cell.attack, cell.scheme, cell.defense, cell.detector, cell.calibration, cell.own_data)
        lines.setdefault(key, []).append((cell, newest, newest is not None and not current))
    return [Group(*(tuple(column) for column in zip(*line, strict=True))) for line in lines.values()]
