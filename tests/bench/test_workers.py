from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.bench.fakes import Registering, request

from quantinel.bench.messages import Finished, Request
from quantinel.bench.store import Store
from quantinel.bench.workers import ProcessWorkers


@pytest.fixture
def workers() -> Iterator[ProcessWorkers]:
    pool = ProcessWorkers(2, 1)
    yield pool
    pool.close()


def asked(store: Path, do: str) -> Request:
    return request(store, stage="fake", label=do, do=do, register=Registering("fake"))


def ends(pool: ProcessWorkers, count: int) -> dict[str, Finished]:
    """How the next stages end."""
    found: dict[str, Finished] = {}
    deadline = time.monotonic() + 120
    while len(found) < count and time.monotonic() < deadline:
        found |= {event.tag: event.finished for event in pool.events(1.0) if event.finished is not None}
    return found


def pids(pool: ProcessWorkers) -> list[int]:
    return [worker.process.pid for worker in (*pool._idle, *pool._busy) if worker.process.pid is not None]


def test_a_worker_that_dies_fails_its_stage_only(workers: ProcessWorkers, tmp_path: Path) -> None:
    workers.submit("dies", asked(tmp_path, "exit"))
    workers.submit("lives", asked(tmp_path, "work"))
    found = ends(workers, 2)
    assert (found["dies"].outcome, found["dies"].error) == ("failed", "the worker process died (exit code 3)")
    assert found["lives"].outcome == "ok"
    assert Store(tmp_path).find(asked(tmp_path, "work").where) is not None

    (idle,) = pids(workers)
    os.kill(idle, signal.SIGKILL)  # with nothing to do
    os.waitid(os.P_PID, idle, os.WEXITED | os.WNOWAIT)
    workers.submit("killed", asked(tmp_path, "kill"))
    error = ends(workers, 1)["killed"].error
    assert error is not None
    assert error.startswith("the worker process died (signal SIGKILL); the machine may have run out of memory")
    assert pids(workers) == []


@pytest.mark.parametrize(
    "way", ["stop", pytest.param("signal", marks=pytest.mark.slow), pytest.param("close", marks=pytest.mark.slow)]
)
def test_a_stop_reaches_the_stage_and_nobody_stays(workers: ProcessWorkers, tmp_path: Path, way: str) -> None:
    workers.submit("waits", asked(tmp_path, "wait"))
    (pid,) = pids(workers)
    os.kill(pid, signal.SIGINT)  # Ctrl-C goes to all processes of a terminal, also while they start; the driver decides
    if way == "signal":  # a batch system ends all processes of a job at once
        os.kill(pid, signal.SIGTERM)
    while way == "stop" and not any(event.progress for event in workers.events(1.0)):
        assert workers._busy
    if way == "stop":
        os.kill(pid, signal.SIGINT)
        workers.stop()
    if way != "close":
        assert ends(workers, 1)["waits"].outcome == "interrupted"
    workers.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert list(workers.events(0.0)) == []
