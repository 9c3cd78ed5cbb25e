"""``quantinel bench run`` and ``plan``: what they print, what they refuse, and their exit codes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.bench.fakes import SMALL, InProcess, use_fake_stages
from tests.cli.tiny_cli import Run

from quantinel.bench.row_file import read_rows
from quantinel.cli import bench
from quantinel.errors import EXIT_ERROR, EXIT_PASS, EXIT_USAGE


@pytest.fixture(autouse=True)
def _nowhere_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("QUANTINEL_DATA", "QUANTINEL_STORE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    path = tmp_path / "fake.toml"
    path.write_text(SMALL, "utf-8")
    return path


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> InProcess:
    """Fake stages in this process instead of worker processes."""
    use_fake_stages(monkeypatch)
    pool = InProcess()

    @contextmanager
    def here(*_: object) -> Iterator[InProcess]:
        yield pool

    monkeypatch.setattr(bench, "_workers", here)
    return pool


@pytest.mark.parametrize("verb", ["run", "plan"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("absent",), "unknown suite 'absent'; give a .toml file or one of smoke"),
        (("absent.toml",), "absent.toml cannot be read"),
        (("smoke", "--shard", "3/2"), "--shard is '3/2'; give i/n"),
        (("smoke", "--only", "victim-int8/none/int8/efra/s0"), "did you mean 'victim-int8/none/int8/efrap/s0'"),
        (("smoke", "--data-root", "nowhere"), "the data root nowhere is not a folder"),
        (("smoke", "--workers", "0"), "--workers"),
    ],
)
def test_mistakes_are_one_line(
    run: Run, workers: InProcess, verb: str, arguments: tuple[str, ...], message: str
) -> None:
    done = run("bench", verb, *arguments)
    assert done.code == (EXIT_ERROR if "absent.toml" in arguments else EXIT_USAGE)
    assert message in done.error
    assert workers.given == []
    assert done.out == ""


def test_a_suite_of_data_elsewhere_needs_the_root(run: Run, tmp_path: Path, suite: Path, workers: InProcess) -> None:
    suite.write_text(SMALL.replace("bundled:test", "{root}/images", 1), "utf-8")
    for verb in ("run", "plan"):
        done = run("bench", verb, suite)
        assert done.code == EXIT_USAGE
        assert "say where the data lies with --data-root DIR (or QUANTINEL_DATA)" in done.error
    (tmp_path / "root").mkdir()
    done = run("bench", "run", suite, "--data-root", "root", "-q")
    assert done.code == EXIT_ERROR
    assert "root/images does not exist; check the suite and --data-root" in done.out
    done = run("bench", "plan", suite, "--data-root", "root")
    assert done.code == EXIT_ERROR
    assert "root/images does not exist; check the suite and --data-root" in done.out


def test_the_next_command_can_be_pasted(run: Run, suite: Path, workers: InProcess) -> None:
    assert f"See: quantinel bench table {suite}\n" in run("bench", "run", suite, "-q").out
    there = run("bench", "run", suite, "--results", "other place", "-q").out
    assert f"See: quantinel bench table {suite} --results 'other place'\n" in there


def test_unknown_stages_cannot_be_reused(run: Run, suite: Path, workers: InProcess) -> None:
    done = run("bench", "run", suite, "--reuse", "attacks")
    assert done.code == EXIT_USAGE
    assert "--reuse attacks: there is no such stage" in done.error


def test_a_run_prints_and_writes_and_a_second_one_adds_nothing(run: Run, suite: Path, workers: InProcess) -> None:
    command = ("bench", "run", suite, "--results", "out", "--store", "store", "--json", "-q")
    done = run(*command)
    assert (done.code, done.err) == (EXIT_PASS, "")
    told = json.loads(done.out)
    assert (told["cells"], told["ok"], told["failed"], told["rows_added"], told["stages_run"]) == (2, 2, 0, 2, 4)
    assert len(read_rows(Path("out", "fake.jsonl"))) == 2
    told = json.loads(run(*command).out)
    assert (told["rows_added"], told["stages_run"]) == (0, 0)
    planned = json.loads(run("bench", "plan", suite, "--store", "store", "--json").out)
    assert planned["work_seconds"] == 0
    assert sum(stage["stages"] for stage in planned["stages"]) == 4


def test_a_log_has_a_line_for_every_stage(run: Run, suite: Path, workers: InProcess) -> None:
    lines = run("bench", "run", suite).err.splitlines()
    assert [line.split(":")[1].strip() for line in lines] == [
        "evaluate v", "compress v to int8", "defend v at int8 with nearest", "evaluate v at int8 after nearest"
    ]  # fmt: skip
    assert lines[-1].endswith("(4 of 4 stages, 0 s left)")


def test_a_failed_cell_is_exit_code_2_and_the_others_are_measured(run: Run, suite: Path, workers: InProcess) -> None:
    workers.broken = ("defend v at int8 with nearest",)
    done = run("bench", "run", suite, "-q")
    assert done.code == EXIT_ERROR
    assert "1 cells measured, 1 failed" in done.out
    assert "failed v/none/int8/nearest/s0: defend v at int8 with nearest: the worker process died" in done.out
    assert [row.status for row in read_rows(Path("benchmarks", "results", "fake.jsonl"))] == ["ok", "failed"]


def test_an_interrupted_run_is_exit_code_2_and_goes_on(run: Run, suite: Path, workers: InProcess) -> None:
    workers.stopped = True
    suite.write_text(SMALL.replace('defenses = "nearest"', 'defenses = ["nearest", "efrap"]'), "utf-8")
    asked = iter([False, True])

    @contextmanager
    def requests() -> Iterator[object]:
        yield lambda: next(asked, True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("quantinel.cli.stopping.stop_requests", requests)
        done = run("bench", "run", suite, "-q")
    assert done.code == EXIT_ERROR
    assert "open" in done.out
    assert "Run the same command again to go on." in done.out
    workers.stopped = False
    assert run("bench", "run", suite, "-q").code == EXIT_PASS


def test_shards_together_are_the_whole(run: Run, workers: InProcess) -> None:
    cells = [json.loads(run("bench", "plan", "smoke", "--shard", f"{i}/2", "--json").out)["cell_ids"] for i in (1, 2)]
    whole = json.loads(run("bench", "plan", "smoke", "--json").out)["cell_ids"]
    assert sorted(cells[0] + cells[1]) == sorted(whole)
    assert all(cells)


def test_ray_that_is_not_there(run: Run, suite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    done = run("bench", "run", suite, "--ray", "local")
    assert done.code == EXIT_USAGE
    assert "pip install 'quantinel[ray]'" in done.error


def test_workers_take_the_cores_that_may_be_used(run: Run, suite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "os", SimpleNamespace(sched_getaffinity=lambda _: {3, 5, 8}, environ={}))
    assert bench.usable_cores() == 3
    monkeypatch.setattr(bench, "os", SimpleNamespace(cpu_count=lambda: None, environ={}))
    assert bench.usable_cores() == 1


def test_clean_says_what_it_would_remove_and_removes_it(run: Run, tmp_path: Path) -> None:
    assert "the store nowhere does not exist" in run("bench", "clean", "--store", "nowhere").error
    key, store = "a" * 32, tmp_path / "store"
    for name in (f"locks/{key}", f"failed/{key}.txt", f"partial/{key}/weights"):
        (store / name).parent.mkdir(parents=True, exist_ok=True)
        (store / name).write_text("x")
    would = run("bench", "clean", "--store", str(store), "--all", "--dry-run")
    assert would.code == EXIT_PASS
    assert f"checkpoint: {store / 'partial' / key}" in would.out
    assert "would remove 1 lock, 1 checkpoint, 1 log of a failure; 0.0 MB" in would.out
    done = run("bench", "clean", "--store", str(store))
    assert f"{store}: removed 1 lock; 0.0 MB" in done.out
    assert "Left alone, --all removes them: 1 checkpoint, 1 log of a failure" in done.out
    told = json.loads(run("bench", "clean", "--store", str(store), "--all", "--json").out)
    assert [item["kind"] for item in told["removed"]] == ["checkpoint", "log of a failure"]
    assert run("bench", "clean", "--store", str(store), "--all").out == f"{store}: removed nothing\n"
    assert not (store / "partial" / key).exists()
