"""Workers: where stages run. A pool of processes on this machine; `ray_workers` has the same interface for clusters.

Each process runs one stage at a time with its own interpreter. A process that dies (out of memory, a crash in native
code) fails its stage and is replaced; the others go on. Processes end when the program that started them does, however
it ends.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Protocol

from quantinel.bench.messages import Finished, Request

_PROGRESS_SECONDS = 0.25
_GRACE_SECONDS = 20.0
_DYING_SECONDS = 5.0
_IDLE_SECONDS = 1.0


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
        self._idle: list[_Worker] = []
        self._busy: list[_Worker] = []

    def warm(self) -> None:
        """Start the first process now: it imports the libraries while the caller plans."""
        if not self._idle and not self._busy:
            self._idle.append(self._start())

    def submit(self, tag: str, request: Request) -> None:
        """Start a stage."""
        while self._idle:
            worker = self._idle.pop()
            if self._send(worker, tag, request):
                return
            self._bury(worker)  # it died while it had nothing to do
        self._send(self._start(), tag, request, always=True)

    def _send(self, worker: _Worker, tag: str, request: Request, always: bool = False) -> bool:
        """Give a worker a stage; one that is dead takes it only if ``always``, and then reports that it died."""
        try:
            worker.connection.send(request)
        except OSError:
            if not always:
                return False
        worker.tag = tag
        self._busy.append(worker)
        return True

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
                if not worker.connection.closed:
                    self._idle.append(worker)
                yield Event(worker.tag, finished=message)
            else:
                yield Event(worker.tag, progress=message)

    def stop(self) -> None:
        """Ask all stages to keep a checkpoint and end."""
        for worker in self._busy:
            worker.stopper.close()

    def close(self) -> None:
        """End all processes: idle ones at once (they have stored all), busy ones after a time to keep checkpoints."""
        deadline = time.monotonic() + _GRACE_SECONDS
        try:
            self.stop()
            while self._busy and time.monotonic() < deadline:
                for _ in self.events(max(0.0, deadline - time.monotonic())):
                    pass  # whatever they still give is in the store
        finally:
            for worker in (*self._idle, *self._busy):
                self._bury(worker)
            self._idle, self._busy = [], []

    @staticmethod
    def _bury(worker: _Worker) -> int | None:
        """Make sure that a process is gone; returns its exit code."""
        worker.connection.close()
        worker.stopper.close()
        if worker.process.is_alive():
            worker.process.kill()
        worker.process.join()
        return worker.process.exitcode

    def _start(self) -> _Worker:
        here, there = self._context.Pipe()
        stop, stopper = self._context.Pipe(duplex=False)
        before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
        os.environ.update(dict.fromkeys(_THREAD_VARIABLES, str(self._threads)))
        try:
            process = self._context.Process(target=_serve, args=(there, stop), daemon=True)
            with _held_signals():
                process.start()
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
        there.close()
        stop.close()
        return _Worker(process, here, stopper)

    def _died(self, worker: _Worker) -> Finished:
        worker.process.join(_DYING_SECONDS)
        code = self._bury(worker)
        if code == _ENDED:
            return Finished("interrupted", "the worker was told to end")
        reason = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
        hint = "; the machine may have run out of memory, use fewer workers" if code == -signal.SIGKILL else ""
        return Finished("failed", f"the worker process died ({reason}){hint}")


_ENDED = 75
"""Exit code of a worker that was told to end and had nothing to do."""
_HELD = (signal.SIGINT, signal.SIGTERM)
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@contextmanager
def _held_signals() -> Iterator[None]:
    """Processes that are started here get these signals once they can tell what they mean; importing takes seconds."""
    resource_tracker.ensure_running()  # else it lets them through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@dataclass
class _Worker:
    """A process.

    Attributes:
        process: itself.
        connection: requests there, reports back.
        stopper: closed to ask for a stop. No lock is shared, since a process that is killed while it holds one would
            take the others with it.
        tag: of its stage.
    """

    process: BaseProcess
    connection: Connection
    stopper: Connection
    tag: str = ""


def _serve(connection: Connection, stop: Connection) -> None:
    """The main function of a worker process: run what comes until the connection closes."""
    from quantinel.bench.execution import execute  # seconds, which the process that starts this one must not spend

    asked = False

    def terminate(*_: object) -> None:
        """A batch system tells all processes at once: keep a checkpoint."""
        nonlocal asked
        asked = True

    def should_stop() -> bool:
        return asked or stop.poll()  # readable once it is closed

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the program that started it decides
    signal.signal(signal.SIGTERM, terminate)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD)
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
            if not connection.poll(0.0 if asked else _IDLE_SECONDS):
                if asked:
                    sys.exit(_ENDED)
                continue
            request = connection.recv()
        except (EOFError, OSError):
            return
        connection.send(execute(request, should_stop, progress))


def _end_with_parent() -> None:
    """Leave nothing running when the program was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
