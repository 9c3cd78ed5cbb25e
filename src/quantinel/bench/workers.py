"""Workers: where stages run. A pool of processes on this machine; `ray_workers` has the same interface for clusters.

Each process runs one stage at a time with its own interpreter. A process that dies (out of memory, a crash in native
code) fails its stage and is replaced; the others go on. Processes end when the program that started them does, however
it ends.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

from quantinel.bench.execution import Finished, Request, execute

_PROGRESS_SECONDS = 0.25
_GRACE_SECONDS = 20.0


@dataclass(frozen=True)
class Event:
    """Something a worker reports.

    Attributes:
        tag: of the stage.
        finished: how it ended; None for progress.
        progress: (what, done, total).
    """

    tag: str
    finished: Finished | None = None
    progress: tuple[str, int, int] | None = None


class Workers(Protocol):
    """Where stages run."""

    slots: int

    def submit(self, tag: str, request: Request) -> None:
        """Start a stage; at most ``slots`` may be under way."""

    def events(self, timeout: float) -> Iterator[Event]:
        """What happened; waits for up to ``timeout`` seconds for something."""

    def stop(self) -> None:
        """Ask all stages to keep a checkpoint and end."""

    def close(self) -> None:
        """End all workers."""


class ProcessWorkers:
    """Processes on this machine.

    Args:
        slots: how many.
        threads: of each; set before any library starts its own pool of threads.
    """

    def __init__(self, slots: int, threads: int) -> None:
        self.slots = slots
        self._threads = threads
        self._context = multiprocessing.get_context("spawn")
        self._stop = self._context.Event()
        self._idle: list[_Worker] = []
        self._busy: list[_Worker] = []

    def submit(self, tag: str, request: Request) -> None:
        """Start a stage."""
        worker = self._idle.pop() if self._idle else self._start()
        worker.tag = tag
        self._busy.append(worker)
        worker.connection.send(request)

    def events(self, timeout: float) -> Iterator[Event]:
        """Reports of all busy workers; a dead one reports a failure."""
        ready = wait([worker.connection for worker in self._busy], timeout) if self._busy else []
        for worker in [worker for worker in self._busy if worker.connection in ready]:
            try:
                message = worker.connection.recv()
            except (EOFError, OSError):
                message = self._died(worker)
            if isinstance(message, Finished):
                self._busy.remove(worker)
                if worker.process.is_alive():
                    self._idle.append(worker)
                yield Event(worker.tag, finished=message)
            else:
                yield Event(worker.tag, progress=message)

    def stop(self) -> None:
        """Ask all stages to keep a checkpoint and end."""
        self._stop.set()

    def close(self) -> None:
        """End all processes: idle ones at once, busy ones after a time to keep their checkpoints."""
        self._stop.set()
        for worker in self._idle:
            worker.connection.close()
        deadline = time.monotonic() + _GRACE_SECONDS
        for worker in (*self._idle, *self._busy):
            worker.process.join(max(0.0, deadline - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        self._idle, self._busy = [], []

    def _start(self) -> _Worker:
        here, there = self._context.Pipe()
        before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
        os.environ.update(dict.fromkeys(_THREAD_VARIABLES, str(self._threads)))
        try:
            process = self._context.Process(target=_serve, args=(there, self._stop), daemon=True)
            process.start()
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
        there.close()
        return _Worker(process, here)

    @staticmethod
    def _died(worker: _Worker) -> Finished:
        worker.process.join(5.0)
        worker.connection.close()
        code = worker.process.exitcode
        reason = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
        hint = "; the machine may have run out of memory, use fewer workers" if code == -signal.SIGKILL else ""
        return Finished("failed", f"the worker process died ({reason}){hint}")


_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    tag: str = ""


def _serve(connection: Connection, stop: Any) -> None:
    """The main function of a worker process: run what comes until the connection closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the program that started it decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    last = 0.0

    def progress(what: str, done: int, total: int, *_: float) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _PROGRESS_SECONDS or done == total:
            last = now
            connection.send((what, done, total))

    while True:
        try:
            request = connection.recv()
        except (EOFError, OSError):
            return
        connection.send(execute(request, stop.is_set, progress))


def _end_with_parent() -> None:
    """Leave nothing running when the program was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
