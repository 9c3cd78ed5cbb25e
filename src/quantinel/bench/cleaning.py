"""Remove from a store what runs leave behind, and nothing that a running process holds.

Every stage has a lock, and whoever computes the stage holds it; so each leftover is removed under the lock of its own
stage, the lock file last. Waiting processes notice that the file they opened is gone and open the new one. Only names
that the store itself gives are looked at, whatever else lies in the folder.
"""

from __future__ import annotations

import re
import shutil
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from quantinel.bench.nodes import STAGES
from quantinel.bench.store import Address, Store
from quantinel.errors import InputError
from quantinel.files import output_errors

Kind = Literal["lock", "unfinished result", "checkpoint", "log of a failure"]
_KEY = re.compile(r"[0-9a-f]{32}")
_LOG = re.compile(r"([0-9a-f]{32})\.txt")
_UNFINISHED = re.compile(r"\.([0-9a-f]{16})\.(?:partial|old)-[0-9a-f]{12}")


@dataclass(frozen=True)
class Leftover:
    """A file or folder that is no result.

    Attributes:
        kind: what it was for.
        key: of its stage.
        path: where it lies.
        size: bytes.
        wanted: a checkpoint that an interrupted run goes on from, or the log of a failure that no later run mended.
    """

    kind: Kind
    key: str
    path: Path
    size: int
    wanted: bool


@dataclass
class Cleaned:
    """What was done, or would be.

    Attributes:
        removed: gone.
        held: left alone because a running process computes their stage.
        wanted: left alone because they were not asked for.
    """

    removed: list[Leftover] = field(default_factory=list)
    held: list[Leftover] = field(default_factory=list)
    wanted: list[Leftover] = field(default_factory=list)


def clean(store: Store, everything: bool = False, dry_run: bool = False) -> Cleaned:
    """Remove leftovers.

    Args:
        store: which other processes may use meanwhile.
        everything: also what is `Leftover.wanted`.
        dry_run: only say what would be removed.

    Raises:
        InputError: there is no such store.
        OutputError: something cannot be removed.
    """
    if not store.root.is_dir():
        raise InputError(f"the store {store.root} does not exist; give the one that runs used with --store")
    done = Cleaned()
    chosen: dict[str, list[Leftover]] = defaultdict(list)
    for item in leftovers(store):
        if item.wanted and not everything:
            done.wanted.append(item)
        else:
            chosen[item.key].append(item)
    for key, items in chosen.items():
        free = _is_free(store.lock_file(key)) if dry_run else _remove(store.lock_file(key), items)
        (done.removed if free else done.held).extend(items)
    return done


def leftovers(store: Store) -> Iterator[Leftover]:
    """Everything in a store that is no result, ordered by kind and name."""
    stored = {Address(*path.relative_to(store.root).parts[1:]).key for path, _ in store.all()}
    for path in _entries(store.root / "locks"):
        if _KEY.fullmatch(path.name):
            yield Leftover("lock", path.name, path, _size(path), False)
    for stage in STAGES:
        for content in _entries(store.root / "objects" / stage):
            for path in _entries(content):
                if match := _UNFINISHED.fullmatch(path.name):
                    key = Address(stage, content.name, match[1]).key
                    yield Leftover("unfinished result", key, path, _size(path), False)
    for path in _entries(store.root / "partial"):
        if _KEY.fullmatch(path.name):
            yield Leftover("checkpoint", path.name, path, _size(path), path.name not in stored)
    for path in _entries(store.root / "failed"):
        if match := _LOG.fullmatch(path.name):
            yield Leftover("log of a failure", match[1], path, _size(path), match[1] not in stored)


def _entries(folder: Path) -> list[Path]:
    """What lies in a folder, links left out."""
    return sorted(path for path in folder.glob("*") if not path.is_symlink()) if folder.is_dir() else []


def _size(path: Path) -> int:
    """Bytes of a file or of all files below a folder; what vanishes meanwhile counts nothing."""
    total = 0
    for item in (path, *path.rglob("*")):
        try:
            total += item.lstat().st_size if item.is_file() else 0
        except FileNotFoundError:
            continue
    return total


def _is_free(lock_file: Path) -> bool:
    """Whether nobody holds a lock; a holder has made its file."""
    if not lock_file.exists():
        return True
    try:
        with FileLock(lock_file, timeout=0):
            return True
    except Timeout:
        return False


def _remove(lock_file: Path, items: list[Leftover]) -> bool:
    """Remove leftovers of one stage under its lock; False where another process holds it."""
    with output_errors(lock_file):
        lock_file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(lock_file, timeout=0):
                for item in items:
                    with output_errors(item.path):
                        if item.path.is_dir():
                            shutil.rmtree(item.path)
                        elif item.path != lock_file:
                            item.path.unlink(missing_ok=True)
                lock_file.unlink(missing_ok=True)  # while it is held: nobody may take it in between
        except Timeout:
            return False
    return True
