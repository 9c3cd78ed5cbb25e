"""Figures of a suite at a glance: by method over all victims, and victims against deployment grids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

from quantinel.bench.cells import FLOAT, NONE, own_deployment
from quantinel.bench.rows import ResultRow
from quantinel.bench.site.entries import NEAREST, Entry, SuitePages
from quantinel.errors import QuantinelError


@dataclass(frozen=True)
class MethodLine:
    """One method over all victims that it was measured on.

    Attributes:
        method: label.
        cells: victims measured; of: victims that the suite asks for.
        cda, asr: means in percent; change: mean difference of the accuracy to the float model, in points.
        clean_change: the same on clean models; clean_cells: how many.
        worst: the cell with the highest attack success.
        flips: median share of codes that differ from nearest rounding, in percent.
        seconds: median time of choosing the integers.
    """

    method: str
    cells: int
    of: int
    cda: float | None
    change: float | None
    asr: float | None
    worst: Entry | None
    clean_change: float | None
    clean_cells: int
    flips: float | None
    seconds: float | None


def methods(pages: SuitePages, entries: Sequence[Entry] | None = None) -> list[str]:
    """Labels of what is done to models: float and nearest first, then the defenses in the order of the suite."""
    found = dict.fromkeys(entry.method for entry in (pages.figures if entries is None else entries))
    first = [name for name in (FLOAT, NEAREST) if name in found]
    return [*first, *(name for name in found if name not in first)]


def by_method(pages: SuitePages) -> list[MethodLine]:
    """Float and nearest first, then the defenses by mean attack success, lowest first."""
    lines = [_line(name, [entry for entry in pages.figures if entry.method == name]) for name in methods(pages)]
    lines = [line for line in lines if line.cells or line.clean_cells or line.method == FLOAT]
    first = [line for line in lines if line.method in (FLOAT, NEAREST)]
    others = [line for line in lines if line.method not in (FLOAT, NEAREST)]
    return first + sorted(others, key=lambda line: 101.0 if line.asr is None else line.asr)


def _line(method: str, entries: Sequence[Entry]) -> MethodLine:
    victims = [entry for entry in entries if entry.role == "victim"]
    measured = [entry.measured for entry in victims if entry.measured is not None]
    clean = [entry.measured for entry in entries if entry.measured is not None and entry.role == "clean"]
    counted = [entry for entry in victims if entry.measured is not None and entry.measured.asr is not None]
    everything = [*measured, *clean]
    flips = [float(value) for row in everything if isinstance(value := row.extra.get("flips_percent"), int | float)]
    return MethodLine(
        method=method,
        cells=len(measured),
        of=len(victims),
        cda=_mean([row.cda for row in measured]),
        change=_mean([_change(row.cda, row.float_cda) for row in measured]) if method != FLOAT else None,
        asr=_mean([row.asr for row in measured]),
        worst=max(counted, key=lambda entry: (entry.row.asr or 0.0) if entry.row else 0.0, default=None),
        clean_change=_mean([_change(row.cda, row.float_cda) for row in clean]) if method != FLOAT else None,
        clean_cells=len(clean) if method != FLOAT else 0,
        flips=median(flips) if flips else None,
        seconds=median(times) if (times := [row.seconds for row in everything if row.seconds is not None]) else None,
    )


def _change(value: float | None, base: float | None) -> float | None:
    return None if value is None or base is None else value - base


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


@dataclass(frozen=True)
class HeatCell:
    """Attack success of a victim on a grid, averaged over seeds.

    Attributes:
        asr: mean in percent; None where it was not measured.
        low, high: over the seeds.
        entries: one per seed.
        own: the attack was made for this grid.
    """

    asr: float | None
    low: float | None
    high: float | None
    entries: tuple[Entry, ...]
    own: bool

    @property
    def level(self) -> int:
        """Shade from 0 to 10."""
        return 0 if self.asr is None else min(10, max(0, round(self.asr / 10)))


@dataclass(frozen=True)
class HeatMap:
    """Victims (lines) against deployment grids (columns), rounded to nearest."""

    schemes: list[str]
    lines: list[tuple[str, str, list[HeatCell]]]


def heat_map(pages: SuitePages) -> HeatMap | None:
    """Mismatch of victims and grids; None where no victim was measured under nearest rounding."""
    groups: dict[tuple[str, str], dict[str, list[Entry]]] = {}
    schemes: dict[str, None] = {}
    for entry in pages.figures:
        row = entry.measured
        if row is None or entry.role != "victim" or row.asr is None or not _undefended(row):
            continue
        schemes[column(entry)] = None
        groups.setdefault((entry.cell.model, entry.cell.attack), {}).setdefault(column(entry), []).append(entry)
    columns = [FLOAT, *sorted(schemes.keys() - {FLOAT})]
    lines = [
        (model, attack, [_heat_cell(pages, found.get(scheme, [])) for scheme in columns])
        for (model, attack), found in groups.items()
        if found.keys() - {FLOAT}
    ]
    return HeatMap(columns, lines) if lines else None


def _undefended(row: ResultRow) -> bool:
    """As in the tables (`quantinel.bench.columns.is_undefended`); rows tell it without the suite."""
    return row.defense in (NEAREST, NONE) and "defense" not in row.settings


def column(entry: Entry) -> str:
    """Grid of a cell, with the data that calibrates where that is not the model's own."""
    return entry.cell.scheme if entry.cell.own_data else f"{entry.cell.scheme}@{entry.cell.calibration}"


def _heat_cell(pages: SuitePages, entries: Sequence[Entry]) -> HeatCell:
    rates = [entry.row.asr for entry in entries if entry.row is not None and entry.row.asr is not None]
    own = any(entry.cell.scheme in armed_for(pages, entry) for entry in entries)
    if not rates:
        return HeatCell(None, None, None, (), own)
    return HeatCell(fmean(rates), min(rates), max(rates), tuple(entries), own)


def armed_for(pages: SuitePages, entry: Entry) -> set[str]:
    """Grids that a victim is made for, as far as the suite and the row tell."""
    given = {} if entry.row is None else entry.row.settings.get("attack", {})
    schemes = given.get("schemes")
    if isinstance(schemes, list) and schemes:
        return {str(name) for name in schemes}
    try:
        if pages.suite is not None and entry.listed:
            return {own_deployment(pages.suite, entry.cell.model, entry.cell.attack).name}
    except (QuantinelError, KeyError, TypeError):
        pass
    return set()
