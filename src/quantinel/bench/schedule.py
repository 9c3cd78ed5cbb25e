"""Run a plan: what is stored is taken, what is missing goes to the workers, upstream first.

The address of a stage is known as soon as its inputs are there. Among the stages that can run, the one with the most
estimated work behind it goes first (list scheduling by critical path). Estimates are the median times of what the store
holds of the same stage and method, else of the same stage.
"""

from __future__ import annotations

import functools
import heapq
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from quantinel.bench.estimates import Times, critical_paths, readers_within
from quantinel.bench.fingerprints import FileFingerprints, code_fingerprint
from quantinel.bench.messages import Finished, Request
from quantinel.bench.nodes import TRAINING, Node
from quantinel.bench.plan import Plan
from quantinel.bench.stages.job import never
from quantinel.bench.store import Address, Store, Stored, address
from quantinel.bench.workers import Workers
from quantinel.errors import QuantinelError
from quantinel.files import write_file
from quantinel.plugins import loaded


@dataclass(frozen=True)
class Result:
    """A stage that is over.

    Attributes:
        folder: of its files; None when it failed.
        stored: its description; None when it failed.
        error: of this stage, or of the upstream one that failed.
        cached: nothing ran.
        key: content address; "" where an upstream failure left it unknown.
    """

    folder: Path | None
    stored: Stored | None
    error: str | None
    cached: bool
    key: str


@dataclass(frozen=True)
class Addressed:
    """Where a stage's result lies, with what the address was computed from.

    Attributes:
        where: the address.
        sources: fingerprints of external files and images, by role.
        inputs: digests of upstream results, by role.
    """

    where: Address
    sources: dict[str, str]
    inputs: dict[str, str]


class Watcher(Protocol):
    """Learns how a run proceeds."""

    def started(self, label: str, tag: str) -> None:
        """A stage went to a worker."""

    def progress(self, tag: str, what: str, done: int, total: int) -> None:
        """A running stage reports."""

    def finished(self, node: Node, result: Result) -> None:
        """A stage is over."""

    def remaining(self, stages: int, total: int, seconds: float | None) -> None:
        """How many stages are left, and for how long at the present rate."""


class Schedule:
    """One run of a plan.

    Args:
        plan: stages and cells.
        store: results.
        workers: where stages run; None to look at what is stored and run nothing.
        device: where training runs.
        reuse: stages whose newest stored result is taken whatever code made it.
        watcher: learns what happens.
        until: time (monotonic) after which no stage is started and running ones are asked to stop; None for never.
        should_stop: polled; the same as ``until`` once it is true.
    """

    def __init__(
        self,
        plan: Plan,
        store: Store,
        workers: Workers | None,
        *,
        device: str = "cpu",
        reuse: frozenset[str] = frozenset(),
        watcher: Watcher | None = None,
        until: float | None = None,
        should_stop: Callable[[], bool] = never,
    ) -> None:
        self.plan, self.store, self.workers = plan, store, workers
        self.device, self.reuse = device, reuse
        self.watcher, self.until, self.should_stop = watcher, until, should_stop
        self.results: dict[str, Result] = {}
        self.interrupted = False
        self.busy_seconds = 0.0
        self._fingerprints = FileFingerprints(store.root / "fingerprints.json")
        for node in plan.nodes.values():
            code_fingerprint(node.modules)  # now: sources may be edited while the suite runs
        self._readers = readers_within(plan, plan.nodes)
        self._addressed: dict[str, Addressed] = {}

    @functools.cached_property
    def _times(self) -> Times:
        """From all that is stored: read when something has to run."""
        times = Times()
        for _, stored in self.store.all():
            if stored.seconds:  # none where a victim came from elsewhere
                times.learn(stored.stage, stored.config, stored.seconds)
        return times

    @functools.cached_property
    def _priority(self) -> dict[str, float]:
        """Estimated seconds from the start of each stage to the end of the longest chain behind it."""
        costs = {name: self._times.estimate(node) for name, node in self.plan.nodes.items()}
        return critical_paths(self._readers, costs)

    def run(self, settled: Callable[[str], None]) -> None:
        """Work until everything is over, or until the time is.

        Args:
            settled: called with the id of every stage that is over.
        """
        waiting = {name: len(set(node.inputs.values())) for name, node in self.plan.nodes.items()}
        fresh = [name for name, count in waiting.items() if count == 0]
        missing: list[tuple[float, int, str]] = []
        order = {name: index for index, name in enumerate(self.plan.nodes)}
        running: dict[str, float] = {}

        def settle(name: str, result: Result) -> None:
            self.results[name] = result
            if self.watcher is not None:
                if not result.cached:
                    self._report(running)
                self.watcher.finished(self.plan.nodes[name], result)
            settled(name)
            for reader in self._readers[name]:
                waiting[reader] -= 1
                if waiting[reader] == 0:
                    fresh.append(reader)

        try:
            while True:
                while fresh:
                    name = fresh.pop()
                    known = self._look(name)
                    if known is not None:
                        settle(name, known)
                    else:
                        heapq.heappush(missing, (-self._priority[name], order[name], name))
                if self.should_stop() or (self.until is not None and time.monotonic() >= self.until):
                    self.interrupt()
                if self.workers is not None and not self.interrupted:
                    while missing and len(running) < self.workers.slots:
                        name = heapq.heappop(missing)[2]
                        self._submit(name)
                        running[name] = time.monotonic()
                if self.workers is None or not running:
                    return
                for event in self.workers.events(0.5):
                    if event.finished is not None:
                        running.pop(event.tag)
                        self._finish(event.tag, event.finished, settle)
                    elif event.progress is not None and self.watcher is not None:
                        self.watcher.progress(event.tag, *event.progress)
                self._report(running)
        finally:
            self._fingerprints.save()

    def interrupt(self) -> None:
        """Start nothing more and ask running stages to keep a checkpoint."""
        if not self.interrupted and self.workers is not None:
            self.workers.stop()
        self.interrupted = True

    def _look(self, name: str) -> Result | None:
        """A result that needs no work: stored, or impossible because an upstream stage failed."""
        node = self.plan.nodes[name]
        for upstream in node.inputs.values():
            error = self.results[upstream].error
            if self.results[upstream].folder is None:
                return Result(None, None, error, True, "")
        try:
            self._addressed[name] = self._address(node)
        except QuantinelError as error:
            return Result(None, None, str(error), False, "")
        where = self._addressed[name].where
        stored = self.store.find(where)
        folder = self.store.folder(where)
        if stored is None and node.stage in self.reuse:
            folder, stored = next(iter(self.store.siblings(where)), (folder, None))
        return None if stored is None else self._result(node, folder, stored, True, where)

    def _result(self, node: Node, folder: Path, stored: Stored, cached: bool, where: Address) -> Result:
        error = stored.error
        for upstream in node.inputs.values():  # a gate that failed upstream stays with everything behind it
            error = error or self.results[upstream].error
        return Result(folder, stored, error, cached, where.key)

    def _sources(self, node: Node) -> dict[str, str]:
        """Fingerprints of the external files and images of a stage, by role."""
        sources = {role: self._fingerprints.of_path(Path(path)) for role, path in node.files.items()}
        for role, images in node.images.items():
            chosen = ",".join(f"{name}={value}" for name, value in sorted(images.chosen.items()))
            sources[role] = f"{self._fingerprints.of_data(images.specification)},{chosen}"
        return sources

    def _address(self, node: Node) -> Addressed:
        inputs = {}
        for role, upstream in node.inputs.items():
            stored = self.results[upstream].stored
            assert stored is not None
            inputs[role] = stored.digest
        sources = self._sources(node)
        where = address(node.stage, dict(node.config), sources, inputs, code_fingerprint(node.modules))
        return Addressed(where, sources, inputs)

    def place(self, name: str) -> Addressed | None:
        """Where the result of a stage lies or would lie; None while it is not known what goes in."""
        return self._addressed.get(name)

    def _submit(self, name: str) -> None:
        assert self.workers is not None
        node, found = self.plan.nodes[name], self._addressed[name]
        folders = {role: str(Path(path).absolute()) for role, path in node.files.items()}
        for role, upstream in node.inputs.items():
            folder = self.results[upstream].folder
            assert folder is not None
            folders[role] = str(folder.absolute())
        request = Request(
            found.where, node.label, dict(node.config), folders, dict(node.images), found.sources, found.inputs,
            str(self.store.root.absolute()), self.device if node.stage in TRAINING else "cpu", node.modules, loaded(),
        )  # fmt: skip
        self.workers.submit(name, request)
        if self.watcher is not None:
            self.watcher.started(node.label, name)

    def _finish(self, name: str, finished: Finished, settle: Callable[[str, Result], None]) -> None:
        node, where = self.plan.nodes[name], self._addressed[name].where
        self.busy_seconds += finished.seconds
        if finished.outcome == "interrupted":
            self.interrupt()
            return
        stored = self.store.find(where) if finished.outcome != "failed" else None
        if stored is None:
            error = finished.error or "the worker's result is not in the store"
            if finished.log:
                write_file(self.store.root / "failed" / f"{where.key}.txt", finished.log.encode())
            settle(name, Result(None, None, f"{node.label}: {error}", False, where.key))
            return
        self._times.learn(stored.stage, stored.config, stored.seconds)
        settle(name, self._result(node, self.store.folder(where), stored, False, where))

    def _report(self, running: Mapping[str, float]) -> None:
        """Time left: what remains, spread over the workers, but no shorter than the longest chain."""
        if self.watcher is None:
            return
        left = [name for name in self.plan.nodes if name not in self.results]
        now = time.monotonic()
        work = 0.0
        for name in left:
            estimate = self._times.estimate(self.plan.nodes[name])
            work += max(0.0, estimate - (now - running[name])) if name in running else estimate
        longest = max((self._priority[name] for name in left), default=0.0)
        slots = self.workers.slots if self.workers is not None else 1
        self.watcher.remaining(len(left), len(self.plan.nodes), max(work / slots, min(longest, work)) if left else 0.0)

    def estimates(self) -> dict[str, float]:
        """Expected seconds of every stage that has no result."""
        return {name: self._times.estimate(node) for name, node in self.plan.nodes.items() if name not in self.results}
