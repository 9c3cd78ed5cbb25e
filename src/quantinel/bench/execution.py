"""Run one stage in this process and store its result: what every kind of worker does."""

from __future__ import annotations

import contextlib
import importlib
import logging
import platform
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import torch

from quantinel.bench.fingerprints import code_fingerprint
from quantinel.bench.messages import Finished, Request
from quantinel.bench.stages.job import Job, Progress, never, silent
from quantinel.bench.store import LOG, Store, write_stored
from quantinel.errors import GateError, Interrupted, QuantinelError, UsageError
from quantinel.plugins import restore
from quantinel.training.runtime import Runtime


def execute(request: Request, should_stop: Callable[[], bool] = never, progress: Progress = silent) -> Finished:
    """Run a stage and store its result; never raises for what the stage does.

    A result that another process stored in the meantime is taken as it is; it took no time here.
    """
    store = Store(Path(request.store))
    try:
        with store.lock(request.where, should_stop):
            existing = store.find(request.where)
            if existing is not None:
                return Finished(existing.status, existing.error)
            return _run(request, store, should_stop, progress)
    except Interrupted as interrupted:
        return Finished("interrupted", str(interrupted))
    except QuantinelError as known:
        return Finished("failed", str(known))


def _run(request: Request, store: Store, should_stop: Callable[[], bool], progress: Progress) -> Finished:
    started = time.perf_counter()
    lines = _Lines(request.label)
    error: str | None = None
    outcome: Literal["ok", "gate_failed"] = "ok"
    try:
        with _threads(request.config["threads"]), lines.capture(), store.write(request.where) as folder:
            job = Job(
                request.config, {role: Path(path) for role, path in request.folders.items()}, request.images, folder,
                store.checkpoint(request.where), request.device, should_stop, progress,
            )  # fmt: skip
            restore(request.plugins)
            if request.modules and code_fingerprint(request.modules) != request.where.code:
                raise UsageError(
                    "the worker's code differs from the code that planned this stage: it was changed during the run, "
                    "or another version is installed there; run the suite again, with one version everywhere"
                )
            try:
                importlib.import_module(f"quantinel.bench.stages.{request.where.stage}").run(job)
            except GateError as gate:
                outcome, error = "gate_failed", str(gate)
                lines.add(f"gate failed: {gate}")
            seconds = time.perf_counter() - started
            lines.add(f"{seconds:.2f} s")
            (folder / LOG).write_text(lines.text(), "utf-8")
            write_stored(
                folder, request.where, request.label, request.config, request.sources, request.inputs, outcome, error,
                seconds, _name_of(request.device),
            )  # fmt: skip
    except Interrupted as interrupted:
        return Finished("interrupted", str(interrupted), time.perf_counter() - started)
    except QuantinelError as known:
        return _failed(lines, str(known), started)
    except Exception as unknown:  # one cell must not stop the others, whatever its method raises
        lines.add(traceback.format_exc())
        return _failed(lines, f"{type(unknown).__name__}: {unknown}", started)
    return Finished(outcome, error, seconds)


def _failed(lines: _Lines, error: str, started: float) -> Finished:
    line = " ".join(error.split())
    lines.add(f"failed: {line}")
    return Finished("failed", line, time.perf_counter() - started, lines.text())


def _name_of(device: str) -> str:
    """What a device is called: cpu, or the name of the GPU."""
    found = Runtime(device).torch_device()
    return "cpu" if found.type == "cpu" else torch.cuda.get_device_name(found)


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Torch's threads for one stage."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Lines(logging.Handler):
    """The log of one stage: what this package's loggers say, and warnings."""

    def __init__(self, label: str) -> None:
        super().__init__(logging.INFO)
        self._lines: list[str] = []
        self._warnings: set[str] = set()
        self.add(f"{label} on {platform.machine()}, torch {torch.__version__}")

    def add(self, text: str) -> None:
        """A line with the time of day (UTC)."""
        self._lines.append(f"{datetime.now(UTC):%H:%M:%S} {text}")

    def emit(self, record: logging.LogRecord) -> None:
        self.add(f"{record.levelname.lower()}: {record.getMessage()}")

    def _warned(self, message: Warning | str, *_: object, **__: object) -> None:
        if str(message) not in self._warnings:
            self._warnings.add(str(message))
            self.add(f"warning: {message}")

    @contextlib.contextmanager
    def capture(self) -> Iterator[None]:
        """Listen while the stage runs."""
        logger = logging.getLogger("quantinel")
        level = logger.level
        logger.addHandler(self)
        logger.setLevel(min(level or logging.INFO, logging.INFO))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("default")
                warnings.showwarning = self._warned
                yield
        finally:
            logger.removeHandler(self)
            logger.setLevel(level)

    def text(self) -> str:
        """The whole log."""
        return "\n".join(self._lines) + "\n"
