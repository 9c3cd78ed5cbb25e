"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quantinel.errors import OutputError, UsageError


def sha256_file(path: Path) -> str:
    """Hash of a file's bytes, read in blocks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_output(path: Path, overwrite: bool) -> None:
    """Refuse an output that exists, before any work is done.

    Raises:
        UsageError: it exists and ``overwrite`` is False, or it is a file where a folder is to be written.
        OutputError: the folder that it would lie in cannot be written to.
    """
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} exists and is no folder; choose another output")
    if path.exists() and not overwrite:
        raise UsageError(f"{path} exists; choose another output, or add --force to replace it")
    _check_parent(path)


def check_file(path: Path) -> None:
    """Refuse a file that could not be written or replaced, before any work is done.

    Raises:
        UsageError: it is a folder.
        OutputError: the folder that it would lie in cannot be written to.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder; give the name of a file, for example {path / 'report.html'}")
    _check_parent(path)


def _check_parent(path: Path) -> None:
    """Missing folders are created later; the innermost that exists must allow it."""
    parent = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
    if not parent.is_dir():
        raise OutputError(f"cannot write {path}: {parent} is no folder; choose another output")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write {path}: no permission in {parent}; choose a folder you may write to")


@contextmanager
def atomic_directory(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """Write into a hidden neighbour and rename it to ``target`` when everything is written.

    On any error or interruption the neighbour is removed and an existing ``target`` stays as it was.

    Raises:
        UsageError: the target exists and ``overwrite`` is False.
        OutputError: the folder cannot be created, or the disk is full.
    """
    check_output(target, overwrite)
    target = target.absolute()
    partial = target.with_name(
        f".{target.name}.partial-{secrets.token_hex(6)}"
    )  # named first: nothing to lose track of
    created: Path | None = None
    try:
        with output_errors(target):
            created = _make_parents(target.parent)
            partial.mkdir()
        with output_errors(target):
            yield partial
        with output_errors(target):
            _replace(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        if created is not None:
            _remove_empty(target.parent, created)
        raise


def _make_parents(folder: Path) -> Path | None:
    """Create missing parents; returns the uppermost one that was created."""
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing[-1] if missing else None


def _remove_empty(folder: Path, last: Path) -> None:
    """Remove empty folders from ``folder`` up to ``last``."""
    for path in (folder, *folder.parents):
        try:
            path.rmdir()
        except OSError:
            return
        if path == last:
            return


def _replace(partial: Path, target: Path) -> None:
    if not target.exists():
        os.rename(partial, target)
        return
    old = target.with_name(f".{target.name}.old-{secrets.token_hex(6)}")
    try:
        os.rename(target, old)
        os.rename(partial, target)
    except BaseException:
        if old.exists() and not target.exists():
            os.rename(old, target)
        raise
    finally:
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)


@contextmanager
def output_errors(target: Path) -> Iterator[None]:
    """Turn a full disk or a missing permission into one line."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OutputError(f"the disk is full while writing {target}; free some space and run again") from error
        raise OutputError(
            f"cannot write {target}: {error.strerror or error}; choose a folder you may write to"
        ) from error


def write_file(path: Path, data: bytes) -> None:
    """Write a single file through a neighbour, so that it is never half there."""
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(data)
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
