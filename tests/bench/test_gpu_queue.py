from __future__ import annotations

import argparse
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from benchmarks.gpu import drive

from quantinel.bench.row_file import read_rows
from quantinel.bench.store import Store, address, write_stored

TINY = """
title = "Tiny"
[run]
limit = 20
calibration_images = 16
[data.cifar10]
test = "bundled:test"
calibration = "bundled:calibration"
[models.victim]
victim = "bundled:victim_int8"
data = "cifar10"
[[cells]]
models = "victim"
schemes = "own"
defenses = "nearest"
"""


def stored_result(store: Path, config: int, size: int) -> Path:
    where = address("evaluate", {"n": config}, {}, {}, "code")
    with Store(store).write(where) as folder:
        (folder / "data.bin").write_bytes(bytes(size))
        write_stored(folder, where, "label", {"n": config}, {}, {}, "ok", None, 1.0)
    return Store(store).folder(where)


def test_the_queue_page_is_current() -> None:
    assert (drive.HERE / "QUEUE.md").read_text("utf-8") == drive.markdown(drive.RESULTS), (
        "run python benchmarks/gpu/drive.py status --write"
    )


def test_every_entry_names_cells_of_its_own() -> None:
    seen: set[tuple[str, str]] = set()
    for entry in drive.entries():
        cells = {(entry.suite, cell) for cell in entry.cells()}
        assert cells
        assert not cells & seen
        seen |= cells


def test_what_does_not_fit_is_left_out_by_name_and_the_rest_comes_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drive, "PART_BYTES", 40_000)
    store, out, home = tmp_path / "store", tmp_path / "out", tmp_path / "home"
    out.mkdir()
    small, large = stored_result(store, 1, 60_000), stored_result(store, 2, 500_000)
    (store / "partial" / "k").mkdir(parents=True)
    (store / "partial" / "k" / "training.safetensors").write_bytes(b"state")
    parts, left_out = drive.pack(store, out)
    assert parts == len(list(out.glob("*.part"))) == 2
    assert all(path.stat().st_size <= 40_000 for path in out.glob("*.part"))
    assert [str(large.relative_to(store)) in name for name in left_out] == [True]
    monkeypatch.setattr(drive, "HERE", tmp_path)
    monkeypatch.setattr(drive, "entries", list)
    given = argparse.Namespace(folder=out, results=home / "results", store=home / "store")
    assert drive.merge(given) == 0
    assert (home / "store" / small.relative_to(store) / "data.bin").stat().st_size == 60_000
    assert (home / "store" / "partial" / "k" / "training.safetensors").read_bytes() == b"state"
    assert not (home / "store" / large.relative_to(store)).exists()


def test_parts_that_leave_the_store_are_refused(tmp_path: Path) -> None:
    evil = tmp_path / "x"
    evil.write_text("x")
    with tarfile.open(tmp_path / "store-00.part", "w") as archive:
        archive.add(evil, "../../outside.txt")
    given = argparse.Namespace(folder=tmp_path, results=tmp_path / "r", store=tmp_path / "a" / "b" / "store")
    with pytest.raises(tarfile.FilterError):
        drive.merge(given)
    assert not (tmp_path / "a" / "outside.txt").exists()


def test_relative_folders_are_those_of_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def started(command: list[str], **_: object) -> SimpleNamespace:
        commands.append(command)
        return SimpleNamespace(returncode=0)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(drive.subprocess, "run", started)
    name = drive.entries()[0].name
    assert drive.main(["run", "--entry", name, "--out", "out", "--store", "kept", "--data-root", "data"]) == 0
    given = dict(zip(commands[0], commands[0][1:], strict=False))
    assert given["--results"] == str(tmp_path / "out" / "results")
    assert (given["--store"], given["--data-root"]) == (str(tmp_path / "kept"), str(tmp_path / "data"))


@pytest.mark.slow
def test_an_entry_runs_and_its_rows_come_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny.toml").write_text(TINY)
    entry = drive.Entry("tiny", "tiny", ("victim/*",), 1.0, "test")
    monkeypatch.setattr(drive, "HERE", tmp_path)
    monkeypatch.setattr(drive, "SUITES", tmp_path)
    monkeypatch.setattr(drive, "entries", lambda: [entry])
    monkeypatch.setattr(drive, "suite_argument", lambda entry: str(tmp_path / "tiny.toml"))
    results, out = tmp_path / "results", tmp_path / "out"
    assert entry.is_open(results)
    base = ["--results", str(results), "--store", str(tmp_path / "store")]
    assert drive.main(["run", "--out", str(out), "--device", "cpu", "--workers", "1", *base]) == 0
    assert drive.main(["merge", str(out), "--results", str(results), "--store", str(tmp_path / "home")]) == 0
    assert not entry.is_open(results)
    assert {row.defense for row in read_rows(results / "tiny.jsonl")} == {"none", "nearest"}
    assert len(list(Store(tmp_path / "home").all())) == 4
    assert "| done |" in (tmp_path / "QUEUE.md").read_text()
