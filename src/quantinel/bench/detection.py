"""Tables of detectors: their scores, and how well the scores tell models with an attack from models without."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from quantinel.attacks import ATTACKS
from quantinel.audit.rules import COMBINED
from quantinel.bench.auc import area_under_curve
from quantinel.bench.columns import Entry
from quantinel.bench.combined_rows import combined_rows
from quantinel.bench.formats import Column, Figure, Line, Table, Value
from quantinel.bench.provenance import about, below
from quantinel.bench.rows import ResultRow
from quantinel.bench.suite import Suite

_SCORES = (
    Column("model", "model"), Column("attack", "attack"), Column("scheme", "scheme"), Column("detector", "detector"),
    Column("calibration", "calibration"), Column("seeds", "seeds"), Column("score", "score", True),
    Column("statistics", "statistics"), Column("seconds", "seconds", True), Column("status", "status"),
)  # fmt: skip
_AREAS = (
    Column("detector", "detector"), Column("scheme", "scheme"), Column("auc", "AUC", True),
    Column("attacked", "with an attack"), Column("clean", "without"),
)  # fmt: skip


def score_of(row: ResultRow) -> float | None:
    """A detector's score; higher is more suspicious."""
    value = row.extra.get("score")
    return None if value is None else float(value)


def scores_table(suite: Suite, found: list[Entry], only: Sequence[str] = ()) -> Table:
    """A line per model, attack, scheme and detector.

    Args:
        suite: of the cells.
        found: the lines to show.
        only: patterns of cells that were asked for.
    """
    silent = {
        "calibration": all(entry.group.cell.own_data for entry in found),
        "seeds": all(len(entry.group.cells) == 1 for entry in found),
        "status": all(entry.group.status == "ok" for entry in found),
    }
    columns = tuple(column for column in _SCORES if not silent.get(column.name, False))
    lines = tuple(
        Line(tuple(_value(entry, column.name) for column in columns), entry.group.notes, about(entry.group))
        for entry in found
    )
    explained = "Score: higher is more suspicious."
    return Table("detection", f"{suite.title}: detectors", columns, lines, 3, (explained, *below(suite, found, only)))


def _value(entry: Entry, name: str) -> Value:
    group = entry.group
    values: dict[str, Value] = {
        "model": group.cell.model,
        "attack": entry.attack,
        "scheme": group.cell.scheme,
        "detector": group.cell.detector,
        "calibration": group.cell.calibration,
        "seeds": len(group.measured),
        "score": group.averaged(score_of, digits=3),
        "statistics": _statistics(group.measured),
        "seconds": group.averaged(lambda row: row.seconds),
        "status": group.status,
    }
    return values[name]


def _statistics(rows: Iterable[ResultRow]) -> str | None:
    """``name 0.60, ...``; means over seeds."""
    found: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.extra.items():
            if name not in ("score", "images") and isinstance(value, int | float):
                found.setdefault(name, []).append(float(value))
    return ", ".join(f"{name} {sum(values) / len(values):.4g}" for name, values in found.items()) or None


def areas_table(suite: Suite, found: list[Entry], only: Sequence[str] = ()) -> Table | None:
    """AUC of every detector of the suite, by its label, and scheme; None where no scheme has scores of both kinds.

    A detector with options of its own is another one, by its label, and so is a scheme that foreign images calibrate.
    Every seed of a model counts as a score, and so does the combined check of a scan where its parts have scores.
    Attacks that made no victim, and backdoors that are awake in the float model (controls such as badnets), are neither
    kind and left out.
    """
    scores: dict[tuple[str, str], tuple[list[float], list[float]]] = {}
    labelled = [
        (entry.group.cell.detector or "", entry.group.cell.calibrated, row)
        for entry in found
        for row in entry.group.measured
        if row.status == "ok" and kind_of(row) is not None
    ]
    combined = combined_rows(row for _, _, row in labelled)
    labelled += [(COMBINED, row.cell.split("/")[2], row) for row in combined]
    for label, scheme, row in labelled:
        score = score_of(row)
        if score is not None:
            both = scores.setdefault((label, scheme), ([], []))
            both[0 if kind_of(row) == "attacked" else 1].append(score)
    lines = []
    for (detector, scheme), (attacked, clean) in scores.items():
        if attacked and clean:
            area = area_under_curve(attacked, clean)
            figure = Figure(area.value, area.low, area.high, digits=3)
            lines.append(Line((detector, scheme, figure, len(attacked), len(clean))))
    if not lines:
        return None
    explained = (
        "AUC: share of pairs of a model with a conditioned attack and one without that the score orders rightly; in "
        "brackets its 95 % interval (Newcombe 2006)."
    )
    sentences = (explained, *below(suite, found, only))
    return Table("auc", f"{suite.title}: AUC of detectors", _AREAS, tuple(lines), 0, sentences)


def kind_of(row: ResultRow) -> str | None:
    """``clean``, ``attacked``, or None for a backdoor that is awake in the float model (a control)."""
    if row.attack == "none":
        return "clean"
    registered = ATTACKS.get(row.attack)
    return "attacked" if registered is None or registered.conditioned_on is not None else None
