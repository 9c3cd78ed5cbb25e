from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from quantinel.bench.store import RECORD, Address, Store, Stored, address, check_stored, write_stored
from quantinel.errors import InputError, Interrupted

WHERE = Address("defend", "content", "code")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def put(store: Store, where: Address = WHERE, text: str = "figures", seconds: float = 1.0) -> Stored:
    with store.lock(where), store.write(where) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "value").write_text(text)
        (folder / "_times").write_text(str(seconds))
        return write_stored(folder, where, "label", {"a": 1}, {}, {}, "ok", None, seconds)


def test_what_is_stored_is_found(store: Store) -> None:
    assert store.find(WHERE) is None
    stored = put(store)
    assert store.find(WHERE) == stored == check_stored(store.folder(WHERE))
    assert set(stored.files) == {"sub/value", "_times"}
    assert [found for _, found in store.all()] == [stored]


def test_times_do_not_count_and_figures_do(store: Store) -> None:
    digests = [
        put(store, Address("defend", "content", code), text, seconds).digest
        for code, text, seconds in (("a", "x", 1.0), ("b", "x", 2.0), ("c", "y", 1.0))
    ]
    assert digests[0] == digests[1] != digests[2]


def test_an_error_leaves_nothing(store: Store) -> None:
    def broken() -> None:
        with store.write(WHERE) as folder:
            (folder / "value").write_text("x")
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        broken()
    assert store.find(WHERE) is None
    assert not [path for path in store.root.rglob("*") if path.is_file()]


@pytest.mark.parametrize("damage", ["no record", "torn record", "no file", "short file", "other record"])
def test_torn_results_are_not_found(store: Store, damage: str) -> None:
    put(store)
    folder = store.folder(WHERE)
    if damage == "no record":
        (folder / RECORD).unlink()
    elif damage == "torn record":
        (folder / RECORD).write_bytes((folder / RECORD).read_bytes()[:-20])
    elif damage == "no file":
        (folder / "sub" / "value").unlink()
    elif damage == "short file":
        (folder / "sub" / "value").write_text("fig")
    else:
        (folder / RECORD).write_text(json.dumps({"stage": "defend"}))
    assert store.find(WHERE) is None
    assert list(store.all()) == []
    assert store.siblings(WHERE) == []
    with pytest.raises(InputError, match="no complete result"):
        check_stored(folder)
    put(store, text="again")
    assert (folder / "sub" / "value").read_text() == "again"


def test_changed_files_are_named(store: Store) -> None:
    put(store)
    (store.folder(WHERE) / "sub" / "value").write_text("figurez")
    with pytest.raises(InputError, match=r"sub/value was changed"):
        check_stored(store.folder(WHERE))


def test_what_a_killed_writer_left_is_not_found_and_goes(store: Store) -> None:
    """A kill between the last file and the renaming leaves a complete folder under a hidden name."""
    put(store)
    folder = store.folder(WHERE)
    for kind in ("partial", "old"):
        shutil.copytree(folder, folder.with_name(f".{folder.name}.{kind}-0123"))
    other = folder.with_name(".codeb.partial-0123")
    shutil.copytree(folder, other)
    shutil.rmtree(folder)
    assert store.find(WHERE) is None
    assert list(store.all()) == []
    assert store.siblings(WHERE) == []
    put(store)
    assert sorted(path.name for path in folder.parent.iterdir()) == [other.name, folder.name]


def test_siblings_are_of_other_code_and_newest_first(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for code, created in (("old", "2020-01-01"), ("new", "2021-01-01")):
        monkeypatch.setattr("quantinel.bench.store.environment", lambda created=created: {"created": created})
        put(store, Address("defend", "content", code))
    put(store, Address("defend", "another", "new"))
    assert [stored.code for _, stored in store.siblings(WHERE)] == ["new", "old"]


def test_addresses_depend_on_everything_that_goes_in() -> None:
    base = ("defend", {"a": 1, "b": 2}, {"s": "1"}, {"i": "1"}, "c")
    same = address("defend", {"b": 2, "a": 1}, {"s": "1"}, {"i": "1"}, "c")
    assert same == address(*base)
    for place, value in enumerate(("detect", {"a": 1}, {"s": "2"}, {"i": "2"}, "d")):
        other = address(*base[:place], value, *base[place + 1 :])  # type: ignore[arg-type]
        assert other.key != same.key
        assert other.relative != same.relative


def test_a_checkpoint_ends_with_its_stage(store: Store) -> None:
    store.checkpoint(WHERE).mkdir(parents=True)
    (store.checkpoint(WHERE) / "state").write_text("x")
    put(store)
    assert not store.checkpoint(WHERE).exists()


def test_threads_that_want_one_result_take_turns(store: Store) -> None:
    made: list[str] = []
    inside = threading.Lock()

    def want(name: str) -> None:
        with store.lock(WHERE):
            assert inside.acquire(blocking=False)
            if store.find(WHERE) is None:
                with store.write(WHERE) as folder:
                    (folder / "value").write_text(name)
                    write_stored(folder, WHERE, name, {}, {}, {}, "ok", None, 0.0)
                made.append(name)
            inside.release()

    threads = [threading.Thread(target=want, args=(str(index),)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    stored = store.find(WHERE)
    assert stored is not None
    assert stored.label == made[0]


def test_processes_that_write_at_once_do_not_mix(store: Store) -> None:
    """Children of this process, each with results of its own and one that all want."""
    children = []
    for index in range(4):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                for turn in range(5):
                    put(store, Address("defend", f"own-{index}-{turn}", "c"), f"{index}-{turn}")
                    with store.lock(WHERE):
                        if store.find(WHERE) is None:
                            with store.write(WHERE) as folder:
                                (folder / "value").write_text(str(index))
                                write_stored(folder, WHERE, str(index), {}, {}, {}, "ok", None, 0.0)
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0, 0]
    found = list(store.all())
    assert len(found) == 21
    for path, _ in found:
        check_stored(path)


def test_waiting_for_another_run_can_be_stopped(store: Store) -> None:
    with store.lock(WHERE):
        asked: list[int] = []

        def should_stop() -> bool:
            asked.append(1)
            return len(asked) > 1

        with pytest.raises(Interrupted, match="another run"), store.lock(WHERE, should_stop):
            pytest.fail("two hold it")
        with pytest.raises(Timeout):
            FileLock(store.root / "locks" / WHERE.key, timeout=0).acquire()
    with store.lock(WHERE, lambda: True):
        pass
