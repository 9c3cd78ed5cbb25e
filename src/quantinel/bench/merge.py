"""Put result files of shards and other machines together: read everything first, then write whole files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from quantinel.bench.row_file import identity, latest, locked, read_results, read_rows
from quantinel.bench.rows import ResultRow
from quantinel.errors import InputError
from quantinel.files import output_errors, write_file


@dataclass
class Merged:
    """What a merge did.

    Attributes:
        added: rows that were new, by suite.
        known: rows that were there already.
        torn: files whose last line was incomplete and left out.
        ignored: ``.jsonl`` files of source folders that hold something else than rows.
    """

    added: dict[str, int] = field(default_factory=dict)
    known: int = 0
    torn: list[Path] = field(default_factory=list)
    ignored: list[Path] = field(default_factory=list)


def merge_results(sources: Sequence[Path], results: Path) -> Merged:
    """Merge result files and folders into ``results/SUITE.jsonl``.

    A row that is there already (`identity`) is skipped. The file grows at its end; where the sources disagree about a
    cell, the row that was created last becomes the cell's newest.

    Args:
        sources: ``.jsonl`` files, or folders of them. Files of a folder that hold no rows (speed) are left alone.
        results: folder to merge into; may hold rows already.

    Raises:
        InputError: a source is missing or empty of rows, or has a line that is not a row; nothing was written.
        OutputError: a file could not be written; it is as it was.
    """
    merged = Merged()
    parts: list[list[ResultRow]] = []
    for source in sources:
        parts += _read(source, merged)
    for suite in dict.fromkeys(row.suite for part in parts for row in part):
        path = results / f"{suite}.jsonl"
        with output_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path):
            present = read_rows(path) if path.exists() else []
            new = [[row for row in part if row.suite == suite] for part in parts]
            union = merge_rows([present, *new])
            added = len(union) - len(merge_rows([present]))
            merged.added[suite] = added
            merged.known += sum(map(len, new)) - added
            if union != present:
                write_file(path, "".join(row.model_dump_json() + "\n" for row in union).encode())
    return merged


def merge_rows(parts: Sequence[Sequence[ResultRow]]) -> list[ResultRow]:
    """Rows of one suite from several files, each once; a cell's newest row is the newest of all files.

    Args:
        parts: rows of each file, oldest first.
    """
    union = _first_of_each(row for part in parts for row in part)
    newest: dict[str, ResultRow] = {}
    for part in parts:
        for cell, row in latest(part).items():
            if cell not in newest or row.created > newest[cell].created:
                newest[cell] = row
    last = latest(union)
    moved = {identity(row) for cell, row in newest.items() if identity(last[cell]) != identity(row)}
    return [row for row in union if identity(row) not in moved] + [row for row in union if identity(row) in moved]


def _first_of_each(rows: Iterable[ResultRow]) -> list[ResultRow]:
    found: dict[object, ResultRow] = {}
    for row in rows:
        found.setdefault(identity(row), row)
    return list(found.values())


def _read(source: Path, merged: Merged) -> list[list[ResultRow]]:
    if source.is_dir():
        found = read_results(source)
        paths = [source / f"{suite}.jsonl" for suite in found]
        parts = list(found.values())
        merged.ignored += [path for path in sorted(source.glob("*.jsonl")) if path not in paths]
    else:
        paths, parts = [source], [read_rows(source)]
    merged.torn += [path for path in paths if not _ends_with_newline(path)]
    if not any(parts):
        raise InputError(
            f"{source} holds no result rows; give SUITE.jsonl files of `quantinel bench run`, or their folder"
        )
    return parts


def _ends_with_newline(path: Path) -> bool:
    data = path.read_bytes()
    return not data or data.endswith(b"\n")
