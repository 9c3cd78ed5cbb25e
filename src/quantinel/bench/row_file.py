"""Files of result rows: JSON lines that only grow, and survive whatever kills the writer.

A row is one line, written with one call and flushed to the disk. A kill in the middle of that call leaves an
incomplete last line; it was never reported as stored, and the next writer cuts it off. Writers take a lock, so that
several shards can append to one file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock
from pydantic import ValidationError

from quantinel.bench.rows import ResultRow
from quantinel.errors import InputError
from quantinel.files import output_errors

Identity = tuple[str, str, str, str, str | None]
_BLOCK = 65536


def identity(row: ResultRow) -> Identity:
    """What makes a row the same result: suite, cell, content address, status and error."""
    return row.suite, row.cell, row.key, row.status, row.error


def locked(path: Path) -> FileLock:
    """The lock that every writer of a file of rows takes."""
    return FileLock(path.with_name(f".{path.name}.lock"))


class RowFile:
    """A growing file of rows: what others appended is read once, not at every append.

    Args:
        path: a ``.jsonl`` file; it and its folder are created where they are missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._forget()

    def _forget(self) -> None:
        self._newest: dict[str, Identity] = {}
        self._offset = self._lines = 0
        self._file: tuple[int, int] | None = None

    def refresh(self) -> None:
        """Learn what the file holds by now; an incomplete last line is left for the writer that holds the lock.

        Raises:
            InputError: the file cannot be read, or holds something else than rows.
        """
        try:
            with self.path.open("rb") as stream:
                state = os.fstat(stream.fileno())
                if self._file != (state.st_dev, state.st_ino) or state.st_size < self._offset:
                    self._forget()  # another file, or one that was shortened
                    self._file = state.st_dev, state.st_ino
                stream.seek(self._offset)
                data = stream.read()
        except FileNotFoundError:
            self._forget()
            return
        except OSError as error:
            raise InputError(f"{self.path} cannot be read ({error.strerror}); check its permissions") from error
        for line in data.split(b"\n")[:-1]:
            row = _row(self.path, self._lines + 1, line)
            self._newest[row.cell] = identity(row)
            self._lines += 1
            self._offset += len(line) + 1

    def append(self, rows: Sequence[ResultRow]) -> list[ResultRow]:
        """Append the rows that are not the newest of their cells already, in order.

        Args:
            rows: results; one whose cell's newest row is the same result (`identity`) is skipped. An older row of the
                same result does not count: after a failure, the figures have to become the newest again.

        Returns:
            The rows that were written.

        Raises:
            InputError: the file holds something else than rows.
            OutputError: the disk is full, or the folder cannot be written to.
        """
        if not rows:
            return []
        with output_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with locked(self.path):
                _cut_incomplete_line(self.path)
                self.refresh()
                newest = dict(self._newest)  # the file itself is read back at the next append
                new = []
                for row in rows:
                    if newest.get(row.cell) != identity(row):
                        newest[row.cell] = identity(row)
                        new.append(row)
                if new:
                    _write(self.path, "".join(row.model_dump_json() + "\n" for row in new).encode())
        return new


def append_rows(path: Path, rows: Sequence[ResultRow]) -> list[ResultRow]:
    """Append rows to a file; see `RowFile.append`."""
    return RowFile(path).append(rows)


def append_line(path: Path, line: Mapping[str, Any]) -> None:
    """Append figures that are no cell of a suite, such as comparisons of speed; each file of these has its own fields.

    Args:
        path: a ``.jsonl`` file; it and its folder are created where they are missing.
        line: of JSON values.

    Raises:
        OutputError: the disk is full, or the folder cannot be written to.
    """
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path):
            _write(path, (json.dumps(line) + "\n").encode())


def _write(path: Path, text: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        while text:
            text = text[os.write(descriptor, text) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cut_incomplete_line(path: Path) -> None:
    """Drop what follows the last newline: the trace of a writer that was killed."""
    try:
        stream = path.open("rb+")
    except FileNotFoundError:
        return
    with stream:
        size = end = stream.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - _BLOCK)
            stream.seek(start)
            newline = stream.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < size:
            stream.truncate(end)


def read_rows(path: Path) -> list[ResultRow]:
    """Read all rows of a file; an incomplete last line (a killed writer) is left out.

    Raises:
        InputError: missing, or a line is not a row of this schema.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); run the suite first") from error
    return [_row(path, number, line) for number, line in enumerate(lines[:-1], 1)]


def _row(path: Path, number: int, line: bytes) -> ResultRow:
    try:
        return ResultRow.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the line"
        raise InputError(
            f"{path}, line {number} is not a result row ({where}: {first['msg']}); remove it and run the suite again"
        ) from error


def read_results(folder: Path, suites: Iterable[str] | None = None) -> dict[str, list[ResultRow]]:
    """Rows of every suite in a results folder, by suite.

    Args:
        folder: holds ``SUITE.jsonl``; other files of that form (speed, interoperability) are not rows and not read.
        suites: which to read; None for all that have rows.
    """
    names = sorted(path.stem for path in folder.glob("*.jsonl")) if suites is None else list(suites)
    return {
        name: read_rows(folder / f"{name}.jsonl") for name in names if suites is not None or _holds_rows(folder, name)
    }


def _holds_rows(folder: Path, name: str) -> bool:
    """Whether any line has the fields that every row begins with; a file with one damaged line still counts."""
    with (folder / f"{name}.jsonl").open("rb") as stream:
        return any(line.startswith(b'{"suite":') and b'"cell":' in line for line in stream)


def latest(rows: Iterable[ResultRow]) -> dict[str, ResultRow]:
    """The newest row of every cell, by cell; cells in the order in which they first appear."""
    return {row.cell: row for row in rows}
