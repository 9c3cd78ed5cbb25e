"""The columns of a suite's table of figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from quantinel.bench.cells import FLOAT, NONE, Cell
from quantinel.bench.defenses import NEAREST
from quantinel.bench.deployment import parse_deployment
from quantinel.bench.effectiveness import defense_effectiveness
from quantinel.bench.formats import Column, Figure, Value
from quantinel.bench.groups import Group
from quantinel.bench.published import Standing, matching, standing
from quantinel.bench.rows import ResultRow
from quantinel.bench.suite import Published, Suite


@dataclass(frozen=True)
class Entry:
    """A line's cells and what they are compared with.

    Attributes:
        suite: of the cells.
        group: the line.
        nearest: the same model, attack and scheme under nearest rounding (pruned only: as it is), if the suite has it.
    """

    suite: Suite
    group: Group
    nearest: Group | None = None

    @property
    def attack(self) -> str:
        """Label of the attack; that of a ready-made victim is known from its row."""
        cell = self.group.cell
        rows = [row for row in self.group.rows if row is not None and row.status != "failed"]
        if cell.attack != NONE:
            return cell.attack
        return rows[0].attack if rows else "the victim's" if self.suite.models[cell.model].victim else NONE

    @property
    def published(self) -> Published | None:
        """What a paper says about it."""
        return matching(self.suite, self.group.cell)

    def paper(self, name: str) -> Figure | None:
        """A published figure."""
        value = None if self.published is None else self.published.figures.get(name)
        return None if value is None else Figure(value)

    @property
    def standing(self) -> Standing:
        """Whether the published figures are reproduced; the mean counts where there are several seeds."""
        rows = [row for row in self.group.rows if row is not None]
        if not self.group.measured:
            return standing(self.suite, self.group.cell, rows[0] if rows else None)
        means = {
            name: None if (mean := self.group.figure(name)) is None else mean.value for name in ("cda", "asr", "ta")
        }
        return standing(self.suite, self.group.cell, self.group.measured[0].model_copy(update=means))

    @property
    def effectiveness(self) -> Figure | None:
        """DER against the undefended deployment with the same seed."""
        if self.nearest is None or self.nearest is self.group:
            return None
        before = {row.seed: row for row in self.nearest.rows if row is not None}
        return self.group.averaged(
            lambda row: defense_effectiveness(before[row.seed], row) if row.seed in before else None
        )

    @property
    def counted(self) -> str | None:
        """Images behind CDA and ASR."""
        found = dict.fromkeys(f"{row.n_clean} / {row.n_triggered}" for row in self.group.measured)
        return ", ".join(found) or None


def entries(suite: Suite, groups: list[Group]) -> list[Entry]:
    """Lines with the undefended line that each is compared with."""

    def place(group: Group) -> tuple[object, ...]:
        cell = dataclasses.replace(group.cell, defense=NONE, seed=0)
        return tuple(dataclasses.asdict(cell).values())

    ordinary: Mapping[tuple[object, ...], Group] = {
        place(group): group for group in groups if is_undefended(suite, group.cell)
    }
    return [Entry(suite, group, ordinary.get(place(group))) for group in groups]


def is_undefended(suite: Suite, cell: Cell) -> bool:
    """Whether a cell is deployed without a defense: plain nearest rounding, or nothing where pruning leaves floats.

    Nearest rounding with options of its own, such as bias correction, is a defense.
    """
    float_left = cell.scheme != FLOAT and parse_deployment(cell.scheme).grid is None
    named = suite.defenses.get(cell.defense)
    method = cell.defense if named is None else named.method
    return method == (NONE if float_left else NEAREST) and not (named is not None and named.settings)


def _flips(entry: Entry) -> Figure | None:
    def share(row: ResultRow) -> float | None:
        value = row.extra.get("flips_percent")
        return float(value) if isinstance(value, int | float) else None

    return entry.group.averaged(share)


Read = Callable[[Entry], Value]
COLUMNS: dict[str, tuple[Column, Read]] = {
    column.name: (column, read)
    for column, read in (
        (Column("model", "model"), lambda entry: entry.group.cell.model),
        (Column("attack", "attack"), lambda entry: entry.attack),
        (Column("scheme", "scheme"), lambda entry: entry.group.cell.scheme),
        (Column("defense", "defense"), lambda entry: entry.group.cell.defense),
        (Column("calibration", "calibration"), lambda entry: entry.group.cell.calibration),
        (Column("seeds", "seeds"), lambda entry: len(entry.group.measured)),
        (Column("cda", "CDA %", True), lambda entry: entry.group.figure("cda")),
        (Column("paper-cda", "paper CDA %", True), lambda entry: entry.paper("cda")),
        (Column("asr", "ASR %", True), lambda entry: entry.group.figure("asr")),
        (Column("paper-asr", "paper ASR %", True), lambda entry: entry.paper("asr")),
        (Column("base-rate", "base rate %", True), lambda entry: entry.group.figure("base_rate")),
        (Column("ta", "TA %", True), lambda entry: entry.group.figure("ta")),
        (Column("paper-ta", "paper TA %", True), lambda entry: entry.paper("ta")),
        (Column("der", "DER %", True), lambda entry: entry.effectiveness),
        (Column("flips", "flips %", True), _flips),
        (Column("seconds", "seconds", True), lambda entry: entry.group.averaged(lambda row: row.seconds)),
        (Column("n", "n clean / triggered"), lambda entry: entry.counted),
        (Column("standing", "paper's figures"), lambda entry: entry.standing),
        (Column("status", "status"), lambda entry: entry.group.status),
    )
}
"""Name -> heading and how it is read from a line; in the order of the table."""


def default_columns(suite: Suite, found: list[Entry]) -> list[str]:
    """Those that say something: without columns that are empty, or the same in every line."""
    silent = {
        "attack": all(entry.attack == NONE for entry in found),
        "calibration": all(entry.group.cell.own_data for entry in found),
        "seeds": all(len(entry.group.cells) == 1 for entry in found),
        "n": len({entry.counted for entry in found} - {None}) < 2,
        "standing": all(entry.standing == "-" for entry in found),
        "status": all(entry.group.status == "ok" for entry in found),
    }
    labels = {"model", "scheme", "defense", "cda"}
    return [
        name
        for name, (_, read) in COLUMNS.items()
        if name in labels or (not silent.get(name, False) and any(read(entry) is not None for entry in found))
    ]
