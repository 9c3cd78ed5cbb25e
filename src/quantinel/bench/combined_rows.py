"""Rows of the combined check of a scan, made of its parts' rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from quantinel.audit.combination import PARTS, combination
from quantinel.audit.rules import COMBINED
from quantinel.bench.rows import ResultRow
from quantinel.detectors import Detection

Scanned = tuple[str, str, str, str, str, int]


def combined_rows(rows: Iterable[ResultRow]) -> list[ResultRow]:
    """A row for every model on a grid that all parts scored, with the seed and the images that they share.

    Args:
        rows: at most one of each cell; those of detectors with options of their own, which no scan runs, are left out.
    """
    models: dict[Scanned, dict[str, ResultRow]] = defaultdict(dict)
    for row in rows:
        own_options = "detector" in row.settings
        if row.detector in PARTS and not own_options and {"score", "p_value", "images"} <= set(row.extra):
            place = row.suite, row.model, row.attack_variant, row.scheme, row.calibration, row.seed
            models[place][row.detector] = row
    return [_combined(parts) for parts in models.values() if set(parts) == set(PARTS)]


def _combined(parts: dict[str, ResultRow]) -> ResultRow:
    found = combination({
        name: Detection(float(row.extra["score"]), p_value=float(row.extra["p_value"])) for name, row in parts.items()
    })  # fmt: skip
    last = parts[PARTS[-1]]
    images = min(int(row.extra["images"]) for row in parts.values())
    return last.model_copy(
        update={
            "detector": COMBINED,
            "cell": last.cell.replace(PARTS[-1], COMBINED),
            "key": f"{last.key} {COMBINED}",
            "extra": {"score": found.score, "p_value": found.p_value, "images": images},
        }
    )
