"""What a row was measured with: the configuration behind its hash."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from quantinel.bench.cells import Cell, entries_of
from quantinel.bench.defenses import chosen_defense
from quantinel.bench.suite import Suite


def resolved(suite: Suite, cell: Cell) -> dict[str, Any]:
    """The cell's configuration without places: what ``config_sha256`` of a row is taken over.

    As the suite says it: options that it leaves at a method's default are not in it.
    """
    entries = entries_of(suite, cell)
    lender, lent = getattr(entries["attack"], "trigger_of", None), {}
    if lender is not None:
        lent = {
            "lender": _described(suite.attacks.get(lender.attack)),
            "lender_model": _described(suite.models[lender.model]),
        }
    chosen = chosen_defense(suite, cell.defense)
    silent = {"seeds"} | (set() if chosen is not None and chosen.kind == "repair" else {"repair_share"})
    return {
        "cell": cell.id,
        "model": _described(suite.models[cell.model]),
        "data": _described(suite.data[suite.models[cell.model].data]),
        "calibration": _described(suite.data[cell.calibration]),
        "run": suite.run.model_dump(mode="json", exclude=silent),
        **{kind: _described(entry) for kind, entry in entries.items()},
        **lent,
    }


_LATER = ("calibration_images", "calibration_triggered", "calibration_class", "test_limit", "trigger_of")
"""Options that older rows know nothing of: left out where they are not used, so that those rows stay comparable."""


def _described(entry: BaseModel | None) -> dict[str, Any] | None:
    if entry is None:
        return None
    values = entry.model_dump(mode="json")
    return {name: value for name, value in values.items() if name not in _LATER or value is not None}
