"""Two results of the same suites, cell by cell: what changed, and whether it can be chance.

CDA, ASR and TA are compared by Fisher's exact test on the counts behind them (Fisher 1922; ``scipy.stats``), and the
p-values of all comparisons corrected after Holm (1979), so that a diff of a hundred cells does not cry wolf. Rows hold
counts and no answers to single images. Both results usually saw the same images, where a paired test would find smaller
changes; this one errs on the side of "may be chance". Other figures, such as detector scores, have no test: they are
listed when they change. The base rate of ASR follows from the answers behind CDA and is left out. Times, hardware,
versions, commits and commands are no results and are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scipy.stats import fisher_exact

from quantinel.bench.row_file import latest, read_results, read_rows
from quantinel.bench.rows import PERCENTAGES, Interval, ResultRow
from quantinel.errors import InputError, UsageError

RATES = {"cda": "n_clean", "asr": "n_triggered", "ta": "n_clean"}
"""Rates, and the field that holds the images behind them (TA counts triggered images of every class)."""
_NO_SETTING = {
    "suite", "cell", "key", "config_sha256", "settings", "status", "error", "published", "extra", "float_cda",
    "float_asr", *PERCENTAGES, *(f"{name}_interval" for name in PERCENTAGES),
}  # fmt: skip


@dataclass(frozen=True)
class Change:
    """A figure that is not the same.

    Attributes:
        figure: name.
        before, after: values; rates in percent. None where it was not measured.
        before_interval, after_interval: 95 % intervals of rates.
        p: corrected p-value of a rate; None where there is no test.
        significant: whether it can hardly be chance.
    """

    figure: str
    before: float | str | None
    after: float | str | None
    before_interval: Interval | None = None
    after_interval: Interval | None = None
    p: float | None = None
    significant: bool = False


@dataclass(frozen=True)
class CellDiff:
    """One cell in both results.

    Attributes:
        suite, cell: which.
        figures: that changed.
        status: before and after, if that changed.
        error: of the later one.
        settings: configuration that changed: name -> (before, after).
        config_changed: whether the hash of the configuration differs.
    """

    suite: str
    cell: str
    figures: tuple[Change, ...] = ()
    status: tuple[str, str] | None = None
    error: str | None = None
    settings: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    config_changed: bool = False

    @property
    def differs(self) -> bool:
        """Whether anything did."""
        return bool(self.figures or self.status or self.settings or self.config_changed)

    @property
    def lost(self) -> bool:
        """Whether figures that were there are gone."""
        return self.status is not None and self.status[0] == "ok"


@dataclass(frozen=True)
class Diff:
    """Everything that differs between two results.

    Attributes:
        cells: that differ, in the order of the earlier result.
        added, removed: ids ``SUITE:CELL``.
        compared: cells in both.
        tests: rates that were tested.
        level: of significance.
    """

    cells: tuple[CellDiff, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]
    compared: int
    tests: int
    level: float

    @property
    def significant(self) -> bool:
        """Whether a rate changed beyond chance, or a measured cell lost its figures."""
        return any(cell.lost or any(change.significant for change in cell.figures) for cell in self.cells)


Results = Mapping[tuple[str, str], ResultRow]


def read_side(given: str) -> dict[tuple[str, str], ResultRow]:
    """One side of a diff: the newest row of every cell.

    Args:
        given: results folder, or file; ``PATH@COMMIT`` takes the rows that this commit measured.

    Raises:
        UsageError: no such path, or no row of the commit.
        InputError: no rows, or a line is not a row.
    """
    path, commit = Path(given), ""
    if not path.exists() and "@" in given:
        place, _, commit = given.rpartition("@")
        path = Path(place)
    if not path.exists():
        raise UsageError(f"{given} does not exist; give a results folder, a .jsonl file, or PATH@COMMIT")
    rows = [row for found in read_results(path).values() for row in found] if path.is_dir() else read_rows(path)
    if not rows:
        raise InputError(f"{path} holds no result rows; give what `quantinel bench run` wrote")
    chosen = [row for row in rows if row.commit.startswith(commit)]
    if not chosen:
        known = ", ".join(sorted({row.commit for row in rows}))
        raise UsageError(f"{path} has no rows of commit {commit}; it has those of {known}")
    suites = dict.fromkeys(row.suite for row in chosen)
    return {
        (suite, cell): row
        for suite in suites
        for cell, row in latest(row for row in chosen if row.suite == suite).items()
    }


def compare(before: Results, after: Results, level: float = 0.05) -> Diff:
    """Compare two results.

    Args:
        before, after: newest rows by suite and cell.
        level: of significance, for all comparisons together.
    """
    both = [place for place in before if place in after]
    p_values = {
        (place, name): p
        for place in both
        for name in RATES
        if (p := _p_value(before[place], after[place], name)) is not None
    }
    corrected = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    cells = [
        _cell(before[place], after[place], {name: corrected.get((place, name)) for name in RATES}, level)
        for place in both
    ]
    return Diff(
        tuple(cell for cell in cells if cell.differs),
        tuple(":".join(place) for place in after if place not in before),
        tuple(":".join(place) for place in before if place not in after),
        len(both), len(p_values), level,
    )  # fmt: skip


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number (Holm, "A simple sequentially rejective multiple test procedure", 1979)."""
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected


def _p_value(before: ResultRow, after: ResultRow, name: str) -> float | None:
    counts = []
    for row in (before, after):
        percent, n = getattr(row, name), getattr(row, RATES[name])
        if percent is None or not n:
            return None
        hits = round(percent * n / 100)
        counts.append([hits, n - hits])
    return float(fisher_exact(counts).pvalue)


def _cell(before: ResultRow, after: ResultRow, p_values: Mapping[str, float | None], level: float) -> CellDiff:
    changes = []
    for name in RATES:
        old, new = getattr(before, name), getattr(after, name)
        p = p_values[name]
        if old != new or getattr(before, RATES[name]) != getattr(after, RATES[name]):
            changes.append(
                Change(
                    name, old, new, getattr(before, f"{name}_interval"), getattr(after, f"{name}_interval"), p,
                    p is not None and p < level,
                )
            )  # fmt: skip
    for name in dict.fromkeys((*before.extra, *after.extra)):
        if before.extra.get(name) != after.extra.get(name):
            changes.append(Change(name, before.extra.get(name), after.extra.get(name)))
    status = (before.status, after.status) if before.status != after.status else None
    return CellDiff(
        before.suite, before.cell, tuple(changes), status, after.error if status else None, _settings(before, after),
        before.config_sha256 != after.config_sha256,
    )  # fmt: skip


def _settings(before: ResultRow, after: ResultRow) -> dict[str, tuple[Any, Any]]:
    """Fields and options that describe the cell and are not the same."""
    flat = []
    for row in (before, after):
        fields = {name: value for name, value in row.repeatable().items() if name not in _NO_SETTING}
        options = {f"{kind}.{name}": value for kind, chosen in row.settings.items() for name, value in chosen.items()}
        flat.append({**fields, **options})
    old, new = flat
    if None in (before.weights_sha256, after.weights_sha256):  # rows of earlier code do not say
        for fields in flat:
            fields.pop("weights_sha256", None)
    return {
        name: (old.get(name), new.get(name)) for name in dict.fromkeys((*old, *new)) if old.get(name) != new.get(name)
    }
