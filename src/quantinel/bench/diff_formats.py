"""A diff of results to read (Markdown) and to compute with (JSON)."""

from __future__ import annotations

import dataclasses
from typing import Any

from quantinel.bench.diff import Change, Diff
from quantinel.bench.formats import markdown_rows
from quantinel.bench.groups import without_paths
from quantinel.bench.rows import Interval


def diff_markdown(diff: Diff) -> str:
    """Tables of changed figures, states and settings, and lists of cells that only one result has."""
    parts = [_summary(diff)]
    figures = [
        (cell.cell, change.figure, _shown(change.before, change.before_interval),
         _shown(change.after, change.after_interval), _difference(change), _chance(change))
        for cell in diff.cells
        for change in cell.figures
    ]  # fmt: skip
    if figures:
        parts.append(markdown_rows(("cell", "figure", "before", "after", "change", "p"), figures))
        parts.append(
            f"{diff.tests} rates tested (Fisher's exact test, corrected after Holm, level {diff.level:g}); figures "
            "without p have no test. In brackets: 95 % interval."
        )
    states = [(cell.cell, *cell.status, without_paths(cell.error or "-")) for cell in diff.cells if cell.status]
    if states:
        parts.append(markdown_rows(("cell", "status before", "after", "reason"), states))
    settings = [
        (cell.cell, name, str(old), str(new)) for cell in diff.cells for name, (old, new) in cell.settings.items()
    ]
    settings += [
        (cell.cell, "configuration", "other hash", "same options in the rows")
        for cell in diff.cells
        if cell.config_changed and not cell.settings
    ]
    if settings:
        parts.append(markdown_rows(("cell", "setting", "before", "after"), settings))
    for word, cells in (("Added", diff.added), ("Removed", diff.removed)):
        if cells:
            parts.append("\n".join([f"{word}:", "", *(f"- `{cell}`" for cell in cells)]))
    return "\n\n".join(parts) + "\n"


def _summary(diff: Diff) -> str:
    changed = sum(bool(cell.figures) for cell in diff.cells)
    beyond = sum(any(change.significant for change in cell.figures) for cell in diff.cells)
    lost = sum(cell.lost for cell in diff.cells)
    return (
        f"{diff.compared} cells in both: {changed} with changed figures, {beyond} of them beyond chance, "
        f"{lost} that lost their figures; {len(diff.added)} added, {len(diff.removed)} removed."
    )


def _shown(value: float | str | None, interval: Interval | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    return f"{value:.4g}" if interval is None else f"{value:.2f} [{interval[0]:.1f}, {interval[1]:.1f}]"


def _difference(change: Change) -> str:
    if not isinstance(change.before, int | float) or not isinstance(change.after, int | float):
        return "-"
    difference = change.after - change.before
    return f"{difference:+.2f}" if change.before_interval else f"{difference:+.4g}"


def _chance(change: Change) -> str:
    if change.p is None:
        return "-"
    shown = "< 0.0001" if change.p < 0.0001 else f"{change.p:.4f}"
    return f"{shown} **significant**" if change.significant else shown


def diff_dict(diff: Diff) -> dict[str, Any]:
    """The same as a JSON value."""
    cells = [{**dataclasses.asdict(cell), "lost": cell.lost} for cell in diff.cells]
    return {**dataclasses.asdict(diff), "cells": cells, "significant": diff.significant}
