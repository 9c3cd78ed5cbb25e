"""What a suite's pages show: every cell with its rows, its published figures, and where its page lies."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from quantinel.bench.cells import FLOAT, NONE, Cell, expand
from quantinel.bench.published import matching, standing
from quantinel.bench.rows import ResultRow
from quantinel.bench.suite import Published, Suite
from quantinel.errors import QuantinelError

NOT_RUN = "not run"
STATUSES = ("ok", "gate_failed", "failed", NOT_RUN)
NEAREST = "nearest"
_LONGEST_NAME = 100


@dataclass(frozen=True)
class Entry:
    """One cell on the site.

    Attributes:
        cell: labels and seed.
        id: identity within the suite, as rows carry it.
        order: place in the suite.
        history: its rows, oldest first.
        page: file name of its page.
        standing: "reproduced", "differs", "failed", "not run", "not compared" (the tolerance is not at hand), or "-".
        published: entry of the suite that speaks of it.
        listed: whether the suite still asks for it.
    """

    cell: Cell
    id: str
    order: int
    history: tuple[ResultRow, ...]
    page: str
    standing: str
    published: Published | None
    listed: bool = True

    @property
    def row(self) -> ResultRow | None:
        """The newest row."""
        return self.history[-1] if self.history else None

    @property
    def status(self) -> str:
        """One of `STATUSES`."""
        return NOT_RUN if self.row is None else self.row.status

    @property
    def measured(self) -> ResultRow | None:
        """The newest row, where its figures count: not those of an attack that made no victim."""
        return self.row if self.row is not None and self.row.status == "ok" else None

    @property
    def attacked(self) -> bool:
        """Whether the model carries a backdoor, as far as rows tell."""
        return (self.cell.attack if self.row is None else self.row.attack) != NONE

    @property
    def kind(self) -> str:
        """``float``, ``nearest`` or ``hardened``: the class that colours it."""
        if self.cell.scheme == FLOAT:
            return "float"
        return "nearest" if self.method == NEAREST else "hardened"

    @property
    def method(self) -> str:
        """Label of what was done to the model: float, the defense, or the detector."""
        if self.cell.detector is not None:
            return self.cell.detector
        return FLOAT if self.cell.scheme == FLOAT else self.cell.defense

    @property
    def subject(self) -> tuple[str, str, int]:
        """The float model behind it."""
        return self.cell.group

    @property
    def setting(self) -> tuple[str, str, int, str, str]:
        """What cells share that differ in the defense only."""
        return *self.cell.group, self.cell.scheme, self.cell.calibration

    @property
    def paper(self) -> dict[str, float]:
        """Published figures by name."""
        if self.published is not None:
            return self.published.figures
        return dict(self.row.published or {}) if self.row is not None else {}


@dataclass(frozen=True)
class SuitePages:
    """A suite on the site.

    Attributes:
        name: of the suite.
        folder: of its pages.
        suite: its definition, where it is at hand.
        entries: cells in the order of the suite.
        trouble: why cells without a row cannot be listed; "" if they are.
    """

    name: str
    folder: str
    suite: Suite | None
    entries: list[Entry]
    trouble: str

    @property
    def title(self) -> str:
        """For people."""
        return self.name if self.suite is None else self.suite.title

    @property
    def description(self) -> str:
        """What it is about, on one line."""
        return "" if self.suite is None else " ".join(self.suite.description.split())

    @cached_property
    def statuses(self) -> dict[str, int]:
        """Cells by status, in the order of `STATUSES`."""
        return {status: sum(entry.status == status for entry in self.entries) for status in STATUSES}

    @cached_property
    def standings(self) -> dict[str, int]:
        """Cells with published figures, by standing."""
        names = ("reproduced", "differs", "failed", NOT_RUN, "not compared")
        counts = {name: sum(entry.standing == name for entry in self.entries) for name in names}
        return {name: count for name, count in counts.items() if count}

    @cached_property
    def figures(self) -> list[Entry]:
        """Cells that measure accuracy and attack success."""
        return [entry for entry in self.entries if entry.cell.detector is None]

    @cached_property
    def scans(self) -> list[Entry]:
        """Cells that score a model with a detector."""
        return [entry for entry in self.entries if entry.cell.detector is not None]

    @cached_property
    def _by_setting(self) -> dict[tuple[str, str, int, str, str], dict[str, Entry]]:
        found: dict[tuple[str, str, int, str, str], dict[str, Entry]] = defaultdict(dict)
        for entry in self.figures:
            found[entry.setting][entry.method] = entry
        return found

    @cached_property
    def _floats(self) -> dict[tuple[str, str, int], Entry]:
        return {entry.subject: entry for entry in self.figures if entry.cell.scheme == FLOAT}

    def nearest_of(self, entry: Entry) -> Entry | None:
        """The same model rounded to nearest on the same grid."""
        return self._by_setting[entry.setting].get(NEAREST) if entry.setting in self._by_setting else None

    def float_of(self, entry: Entry) -> Entry | None:
        """The uncompressed model."""
        return self._floats.get(entry.subject)

    @cached_property
    def _neighbours(self) -> tuple[dict[object, list[Entry]], dict[object, list[Entry]]]:
        subjects: dict[object, list[Entry]] = defaultdict(list)
        settings: dict[object, list[Entry]] = defaultdict(list)
        for entry in self.entries:
            subjects[entry.subject].append(entry)
            settings[entry.setting].append(entry)
        return subjects, settings

    def others_of(self, entry: Entry) -> list[Entry]:
        """Cells of the same model, data and grid, and the float model; of a float model all its cells."""
        subjects, settings = self._neighbours
        if entry.kind == "float":
            return [other for other in subjects[entry.subject] if other.id != entry.id]
        base = self.float_of(entry)
        same = [other for other in settings[entry.setting] if other.id != entry.id]
        return [*([base] if base is not None else []), *same]


def gather(suites: Mapping[str, Suite | None], rows: Mapping[str, Sequence[ResultRow]]) -> list[SuitePages]:
    """Suites with their cells, those of ``suites`` first; rows of others are shown all the same."""
    names = list(dict.fromkeys([*suites, *rows]))
    return [_suite(name, suites.get(name), rows.get(name, ())) for name in names]


def _suite(name: str, suite: Suite | None, rows: Sequence[ResultRow]) -> SuitePages:
    histories: dict[str, list[ResultRow]] = defaultdict(list)
    for row in rows:
        histories[row.cell].append(row)
    cells: dict[str, Cell] = {}
    trouble = ""
    if suite is None:
        trouble = "its definition is not at hand"
    else:
        try:
            cells = {cell.id: cell for cell in expand(suite)}
        except QuantinelError as error:
            trouble = str(error)
    found = {identity: cell_of(history[-1], suite) for identity, history in histories.items() if identity not in cells}
    entries = [
        Entry(
            cell=cell,
            id=identity,
            order=order,
            history=tuple(histories.get(identity, ())),
            page=f"{file_name(identity)}.html",
            standing=_standing(suite, cell, histories.get(identity)),
            published=None if suite is None else matching(suite, cell),
            listed=bool(trouble) or identity in cells,
        )
        for order, (identity, cell) in enumerate({**cells, **found}.items())
    ]
    return SuitePages(name, file_name(name, plain=True), suite, entries, trouble)


def cell_of(row: ResultRow, suite: Suite | None) -> Cell:
    """The cell of a row, by its labels."""
    detector = None
    if row.detector is not None:
        parts = row.cell.split("/")  # the label is in the id only
        detector = parts[3] if len(parts) == 5 and parts[3] else row.detector
    entry = None if suite is None else suite.models.get(row.model)
    own = entry.data if entry is not None else row.data
    return Cell(
        row.model, row.attack_variant, row.scheme, row.defense_variant, detector, row.calibration,
        row.calibration in ("", own), row.seed,
    )  # fmt: skip


def _standing(suite: Suite | None, cell: Cell, history: Sequence[ResultRow] | None) -> str:
    row = history[-1] if history else None
    if suite is None:
        return "not compared" if row is not None and row.published else "-"
    return standing(suite, cell, row)


def file_name(identity: str, plain: bool = False) -> str:
    """A file name for any text, the same on every machine: harmless characters, and a hash that tells texts apart.

    Args:
        identity: what is named.
        plain: leave the hash out where the text is harmless as it is.
    """
    if plain and re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,60}", identity):
        return identity
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", identity).strip("-.")[:_LONGEST_NAME].strip("-.")
    digest = hashlib.sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()[:10]
    return f"{readable}-{digest}" if readable else digest
