"""What one sees while a suite runs: a bar with the time left on a terminal, a line per stage in a log."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from quantinel.cli.guard import one_line
from quantinel.cli.progress import console

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from quantinel.bench.nodes import Node
    from quantinel.bench.schedule import Result


def duration(seconds: float) -> str:
    """``12 s``, ``4 min``, ``2.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Silent:
    """Says nothing."""

    def started(self, label: str, tag: str) -> None:
        """A stage went to a worker."""

    def progress(self, tag: str, what: str, done: int, total: int) -> None:
        """A running stage reports."""

    def finished(self, node: Node, result: Result) -> None:
        """A stage is over."""

    def remaining(self, stages: int, total: int, seconds: float | None) -> None:
        """How much is left."""


class Lines(Silent):
    """A line for every stage that ran, and the time left with it."""

    def __init__(self) -> None:
        self._left = ""
        self._cached = 0

    def finished(self, node: Node, result: Result) -> None:
        """A line unless the stage was stored."""
        if result.cached:
            self._cached += 1
            return
        if self._cached:
            print(f"quantinel: {self._cached} stages were stored", file=sys.stderr, flush=True)
            self._cached = 0
        print(f"quantinel: {_told(node, result)}{self._left}", file=sys.stderr, flush=True)

    def remaining(self, stages: int, total: int, seconds: float | None) -> None:
        """For the next line."""
        self._left = "" if seconds is None else f" ({total - stages} of {total} stages, {duration(seconds)} left)"


def _told(node: Node, result: Result) -> str:
    if result.stored is None:
        return f"FAILED {one_line(result.error or node.label)}"
    gate = " (gate failed)" if result.stored.status == "gate_failed" else ""
    return f"{node.label}: {result.stored.seconds:.1f} s{gate}"


class Bars(Silent):
    """One bar for the suite, and one for every stage that is running."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._all = progress.add_task("stages", total=None, left="")
        self._running: dict[str, TaskID] = {}
        self._labels: dict[str, str] = {}

    def started(self, label: str, tag: str) -> None:
        """A bar of its own."""
        self._labels[tag] = label
        self._running[tag] = self._progress.add_task(label, total=None, left="")

    def progress(self, tag: str, what: str, done: int, total: int) -> None:
        """It moves."""
        if tag in self._running:
            self._progress.update(
                self._running[tag], description=f"{self._labels[tag]}: {what}", completed=done, total=total
            )

    def finished(self, node: Node, result: Result) -> None:
        """It goes; a failure stays on the screen."""
        task = self._running.pop(node.id, None)
        if task is not None:
            self._progress.remove_task(task)
        if result.stored is None and not result.cached:
            self._progress.console.print(_told(node, result), markup=False, soft_wrap=True)

    def remaining(self, stages: int, total: int, seconds: float | None) -> None:
        """The bar of the suite."""
        left = "" if seconds is None else f"{duration(seconds)} left"
        self._progress.update(self._all, completed=total - stages, total=total, left=left)


@contextmanager
def watching(quiet: bool) -> Iterator[Silent]:
    """The watcher that fits stderr."""
    if quiet:
        yield Silent()
    elif sys.stderr is None or not sys.stderr.isatty():
        yield Lines()
    else:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TextColumn("{task.fields[left]}"), console=console(stderr=True), transient=True) as bar:
            yield Bars(bar)
