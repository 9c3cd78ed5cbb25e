from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.bench.fakes import request, use_fake_stages

from quantinel.bench.execution import execute
from quantinel.bench.messages import Finished
from quantinel.bench.ray_workers import RayWorkers, pack, unpack
from quantinel.bench.row_file import read_rows
from quantinel.bench.store import Store, check_stored
from quantinel.errors import UsageError


def test_files_and_folders_travel(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "a").write_bytes(b"1")
    (source / "sub" / "b").write_bytes(b"2")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    folder = unpack(pack(source), tmp_path / "one")
    assert {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()} == {
        "a": b"1", "sub/b": b"2",
    }  # fmt: skip
    file = unpack(pack(source / "a"), tmp_path / "two")
    assert (file.name, file.read_bytes()) == ("a", b"1")


class FakeRay:
    """The part of Ray that is used, in this process: a task runs when its result is asked for."""

    def __init__(self) -> None:
        self.tasks: dict[int, Any] = {}
        self.cancelled: set[int] = set()
        self.options: list[dict[str, Any]] = []
        self.inits: list[dict[str, Any]] = []
        self.down = False

    def init(self, **options: Any) -> None:
        if options.get("num_cpus") == 99:
            raise OSError("the socket's path is too long")
        if options["address"] == "nowhere":
            raise ConnectionError("nobody\nthere")
        self.inits.append(options)

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 6.0}

    def remote(self, function: Any) -> Any:
        def options(**values: Any) -> Any:
            self.options.append(values)
            return SimpleNamespace(remote=lambda *arguments: self._add(lambda: function(*arguments)))

        return SimpleNamespace(options=options)

    def _add(self, work: Any) -> int:
        self.tasks[len(self.tasks)] = work
        return len(self.tasks) - 1

    def wait(self, references: list[int], timeout: float, num_returns: int = 1) -> tuple[list[int], list[int]]:
        return references[:num_returns], references[num_returns:]

    def get(self, reference: int) -> Any:
        if reference in self.cancelled:
            raise RuntimeError("Task was cancelled\nat once")
        return self.tasks[reference]()

    def cancel(self, reference: int) -> None:
        self.cancelled.add(reference)

    def shutdown(self) -> None:
        self.down = True


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)  # type: ignore[arg-type]
    return fake


def ends(workers: RayWorkers) -> Finished:
    (event,) = list(workers.events(1.0))
    assert event.finished is not None
    return event.finished


def test_results_come_back_into_this_store(tmp_path: Path, ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_stages(monkeypatch)
    workers = RayWorkers("auto", None, 2)
    assert workers.slots == 3
    (tmp_path / "upstream").mkdir()
    (tmp_path / "upstream" / "value.json").write_text('"above"')
    asked = request(tmp_path / "store", a=1)
    asked.folders["model"] = str(tmp_path / "upstream")
    workers.submit("x", asked)
    assert ends(workers).outcome == "ok"
    folder = Store(tmp_path / "store").folder(asked.where)
    check_stored(folder)
    assert json.loads((folder / "value.json").read_text())["above"] == {"model": "above"}
    assert execute(asked).seconds == 0.0  # it is taken from the store now
    workers.submit("y", request(tmp_path / "store", do="fail"))
    failed = ends(workers)
    assert (failed.outcome, failed.error) == ("failed", "no such thing at all")
    assert len(list(Store(tmp_path / "store").all())) == 1
    assert ray.options == [{"num_cpus": 2, "num_gpus": 0, "max_retries": 2}] * 2
    workers.close()
    assert ray.down


def test_training_on_a_gpu_reserves_one(tmp_path: Path, ray: FakeRay) -> None:
    workers = RayWorkers("auto", 1, 1)
    for device in ("cuda", "cuda:1", "cpu"):
        workers.submit(device, dataclasses.replace(request(tmp_path), device=device))
    assert [options["num_gpus"] for options in ray.options] == [1, 1, 0]


def test_what_was_cancelled_is_open_and_what_was_lost_has_failed(tmp_path: Path, ray: FakeRay) -> None:
    workers = RayWorkers("auto", 2, 1)
    workers.submit("lost", request(tmp_path))
    ray.cancelled.add(0)
    lost = ends(workers)
    assert (lost.outcome, lost.error) == ("failed", "Ray: Task was cancelled")
    workers.submit("stopped", request(tmp_path))
    workers.stop()
    assert ends(workers).outcome == "interrupted"


def test_a_local_cluster_is_really_local(ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:6379")
    RayWorkers("local", 3, 2)
    assert (ray.inits[0]["address"], ray.inits[0]["num_cpus"]) == ("local", 6)


def test_a_cluster_that_does_not_answer(ray: FakeRay) -> None:
    with pytest.raises(UsageError, match=r"no Ray cluster answers at nowhere \(nobody\)"):
        RayWorkers("nowhere", None, 1)
    with pytest.raises(UsageError, match=r"Ray does not start here \(the socket's path is too long\)"):
        RayWorkers("local", 99, 1)


def command(folder: Path, *options: str) -> list[str]:
    places = ("--store", str(folder / "store"), "--results", str(folder / "results"))
    return [sys.executable, "-m", "quantinel", "bench", "run", "smoke", *places, *options]


@pytest.mark.slow
def test_ray_gives_the_rows_that_processes_give(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    found = []
    for name, options in (("ray", ("--ray", "local", "--workers", "2")), ("processes", ("--workers", "1"))):
        done = subprocess.run(command(tmp_path / name, *options), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert all(line.startswith("quantinel: ") for line in done.stderr.splitlines()), done.stderr
        rows = read_rows(tmp_path / name / "results" / "smoke.jsonl")
        found.append({row.cell: row.repeatable() for row in rows})
    assert found[0] == found[1]
    assert len(found[0]) == 13


@pytest.mark.slow
def test_ctrl_c_leaves_cells_open_and_nothing_behind(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    environment = {**os.environ, "TMPDIR": str(tmp_path / "scratch"), "RAY_TMPDIR": tempfile.gettempdir()}
    (tmp_path / "scratch").mkdir()
    with subprocess.Popen(
        command(tmp_path, "--ray", "local", "--workers", "2"), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=environment, start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        first = process.stderr.readline()  # a stage is over, others are under way
        assert "stages" in first
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate()
    assert process.returncode == 2
    assert "Run the same command again to go on." in out
    rows = read_rows(tmp_path / "results" / "smoke.jsonl") if (tmp_path / "results").exists() else []
    assert all(row.status != "failed" for row in rows)
    assert list((tmp_path / "scratch").glob("quantinel-*")) == []
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
