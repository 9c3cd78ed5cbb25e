"""What is removed from a store, and what is not."""

from __future__ import annotations

import multiprocessing
import shutil
import threading
from pathlib import Path

import pytest
from filelock import FileLock

from quantinel.bench.cleaning import clean, leftovers
from quantinel.bench.store import Address, Store, write_stored
from quantinel.errors import InputError, OutputError

KEPT = Address("defend", "c" * 32, "a" * 16)
OPEN = Address("train", "d" * 32, "b" * 16)


def put(store: Store, where: Address) -> None:
    with store.lock(where), store.write(where) as folder:
        (folder / "value").write_text("x")
        write_stored(folder, where, "label", {}, {}, {}, "ok", None, 1.0)


def leave(store: Store, where: Address) -> dict[str, Path]:
    """A lock, a checkpoint, the log of a failure and a half-written result of one stage."""
    with store.lock(where):
        pass
    partial = store.folder(where).with_name(f".{where.code}.partial-{'0' * 12}")
    for folder in (partial, store.checkpoint(where)):
        folder.mkdir(parents=True)
        (folder / "weights").write_bytes(bytes(1000))
    log = store.root / "failed" / f"{where.key}.txt"
    log.parent.mkdir(exist_ok=True)
    log.write_text("it failed")
    lock = store.lock_file(where.key)
    lock.touch()  # some releases of filelock remove it
    return {"lock": lock, "checkpoint": store.checkpoint(where), "log of a failure": log, "unfinished result": partial}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_results_stay_and_what_they_left_goes(store: Store) -> None:
    put(store, KEPT)
    left = leave(store, KEPT)
    assert {item.kind: item.path for item in leftovers(store)} == left
    done = clean(store)
    assert {item.path for item in done.removed} == set(left.values())
    assert sum(item.size for item in done.removed) == 2000 + len("it failed")
    assert not any(path.exists() for path in left.values())
    assert store.find(KEPT) is not None
    assert (done.held, done.wanted, list(leftovers(store))) == ([], [], [])
    put(store, KEPT)  # the folders of a cleaned store serve again


def test_what_an_open_stage_needs_stays_unless_asked_for(store: Store) -> None:
    left = leave(store, OPEN)
    done = clean(store)
    assert {item.kind for item in done.removed} == {"lock", "unfinished result"}
    assert {item.kind for item in done.wanted} == {"checkpoint", "log of a failure"}
    assert left["checkpoint"].exists()
    assert left["log of a failure"].exists()
    assert {item.kind for item in clean(store, everything=True).removed} == {"checkpoint", "log of a failure"}
    assert not any(path.exists() for path in (*left.values(), store.lock_file(OPEN.key)))


def test_a_dry_run_changes_nothing(store: Store) -> None:
    put(store, KEPT)
    leave(store, KEPT)
    leave(store, OPEN)
    shutil.rmtree(store.root / "locks")
    before = sorted(store.root.rglob("*"))
    would = clean(store, everything=True, dry_run=True)
    assert sorted(store.root.rglob("*")) == before
    assert would.removed == clean(store, everything=True).removed


def _hold(lock: str, held: multiprocessing.synchronize.Event, done: multiprocessing.synchronize.Event) -> None:
    with FileLock(lock):
        held.set()
        done.wait(30)


@pytest.mark.parametrize("dry_run", [False, True])
def test_what_another_process_holds_stays(store: Store, dry_run: bool) -> None:
    left = leave(store, OPEN)
    other = leave(store, Address("train", "e" * 32, "b" * 16))
    context = multiprocessing.get_context("spawn")
    held, done = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(str(left["lock"]), held, done))
    process.start()
    try:
        assert held.wait(60)
        cleaned = clean(store, everything=True, dry_run=dry_run)
        assert {item.path for item in cleaned.held} == set(left.values())
        assert {item.path for item in cleaned.removed} == set(other.values())
        assert all(path.exists() for path in left.values())
        assert all(path.exists() == dry_run for path in other.values())
    finally:
        done.set()
        process.join()


def test_locks_still_exclude_while_they_are_removed(store: Store) -> None:
    """Writers take turns although the file that they lock vanishes again and again."""
    inside, stop, made = threading.Lock(), threading.Event(), []

    def write() -> None:
        for _ in range(20):
            with store.lock(OPEN):
                assert inside.acquire(blocking=False)
                made.append(1)
                inside.release()

    def sweep() -> None:
        while not stop.is_set():
            clean(store)

    store.root.mkdir()
    sweeper = threading.Thread(target=sweep)
    writers = [threading.Thread(target=write) for _ in range(3)]
    for thread in (sweeper, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    sweeper.join()
    assert len(made) == 60


def test_only_names_of_the_store_are_looked_at(store: Store, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    for name in ("locks/mine", "partial/notes", "failed/thesis.txt", "objects/train/x/.git", "objects/other/y/.a"):
        path = store.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    (store.root / "partial" / ("f" * 32)).symlink_to(precious)
    assert clean(store, everything=True).removed == []
    assert precious.exists()


def test_no_store_and_no_permission_are_one_line(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="does not exist; give the one"):
        clean(store)
    leave(store, OPEN)

    def denied(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(shutil, "rmtree", denied)
    with pytest.raises(OutputError, match=r"partial-0+: Permission denied"):
        clean(store)
