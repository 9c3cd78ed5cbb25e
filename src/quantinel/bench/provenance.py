"""What stands below a table: the command that recomputes it, and what its rows were made with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from quantinel.bench.columns import Entry
from quantinel.bench.commands import command
from quantinel.bench.groups import Group
from quantinel.bench.rows import ResultRow
from quantinel.bench.suite import Suite

_COMPUTE = ("torch", "onnxruntime")


def below(suite: Suite, entries: Sequence[Entry], only: Sequence[str] = ()) -> tuple[str, ...]:
    """Two sentences.

    Args:
        suite: of the table.
        entries: its lines.
        only: patterns of cells that were asked for.
    """
    rows = [row for entry in entries for row in entry.group.rows if row is not None]
    return f"Recomputed by `{command(suite, 'run', only)}`, then `{command(suite, 'table', only)}`.", made_with(rows)


def made_with(rows: Iterable[ResultRow]) -> str:
    """Version, commits, libraries and training devices of rows; the same text for the same rows."""
    found = list(rows)
    if not found:
        return "There are no rows yet."
    commits = sorted({row.commit for row in found})
    versions = ", ".join(sorted({row.version for row in found}))
    libraries = [
        f"{name} {', '.join(known)}"
        for name in _COMPUTE
        if (known := sorted({row.versions[name] for row in found if name in row.versions}))
    ]
    devices = sorted({device for row in found for device in row.devices.values()})
    libraries += [f"trained on {', '.join(devices)}"] if devices else []
    word = "commit" if len(commits) == 1 else "commits"
    return f"Rows of quantinel {versions}, {word} {', '.join(commits)}{''.join(f', {name}' for name in libraries)}."


def about(group: Group) -> dict[str, str]:
    """Columns of CSV that say where a line is from."""
    rows = [row for row in group.rows if row is not None]
    return {
        "commit": ", ".join(sorted({row.commit for row in rows})),
        "command": "; ".join(dict.fromkeys(row.command for row in rows)),
    }
