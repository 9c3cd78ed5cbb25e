"""Published figures beside ours: which belong to a cell, and whether they are reproduced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from quantinel.bench.cells import Cell
from quantinel.bench.rows import ResultRow
from quantinel.bench.suite import Published, Suite
from quantinel.errors import UsageError

Standing = Literal["reproduced", "differs", "not run", "failed", "-"]


def _names(entry: Published) -> dict[str, str]:
    """What an entry says of its cells; what it leaves out may be anything."""
    names = ("model", "attack", "scheme", "defense")
    return {name: value for name in names if (value := getattr(entry, name)) is not None}


def _speaks_of(entry: Published, cell: Cell) -> bool:
    return all(getattr(cell, name) == value for name, value in _names(entry).items())


def matching(suite: Suite, cell: Cell) -> Published | None:
    """The entry of the suite that speaks of a cell; the last one wins."""
    if cell.detector is not None:
        return None
    found = [entry for entry in suite.published if _speaks_of(entry, cell)]
    return found[-1] if found else None


def published_for(suite: Suite, cell: Cell) -> dict[str, float] | None:
    """The paper's figures for a cell."""
    entry = matching(suite, cell)
    return None if entry is None else entry.figures


def check_published(suite: Suite, cells: Sequence[Cell]) -> None:
    """Every published entry speaks of a cell.

    Raises:
        UsageError: one does not, because of a name that is not in the suite.
    """
    for entry in suite.published:
        if not any(_speaks_of(entry, cell) for cell in cells):
            shown = ", ".join(f"{name} {value}" for name, value in _names(entry).items())
            raise UsageError(f"published: no cell has {shown} ({entry.source}); correct the names")


def standing(suite: Suite, cell: Cell, row: ResultRow | None) -> Standing:
    """Whether a cell's published figures are reproduced within the suite's tolerance."""
    entry = matching(suite, cell)
    if entry is None:
        return "-"
    if row is None:
        return "not run"
    if row.status == "failed":
        return "failed"
    ours = {name: getattr(row, name) for name in entry.figures}
    near = all(
        ours[name] is not None and abs(ours[name] - value) <= entry.tolerance for name, value in entry.figures.items()
    )
    return "reproduced" if near else "differs"
