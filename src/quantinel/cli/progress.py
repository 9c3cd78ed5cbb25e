"""What happens while a verb works: bars on a terminal, one line per stage in a log, nothing with --quiet."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from quantinel.cli.guard import one_line

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

_WORDS = {
    "calibrate": "calibrating",
    "search": "searching for a trigger",
    "round": "choosing integers",
    "evaluate": "evaluating",
    "images": "reading images",
    "make images": "making images",
    "plant": "planting the backdoor",
    "repair": "hiding it in the rounding cells",
    "poison": "training on poisoned batches",
    "train": "training",
    "qat": "training with rounded weights",
}


def console(*, stderr: bool = False) -> Console:
    """A console that colours nothing by guessing. Without a terminal: no colours, lines of 100 characters."""
    from rich.console import Console

    class PipeConsole(Console):
        def on_broken_pipe(self) -> None:
            raise  # called while the error is handled; rich would exit with code 1, which means findings

    stream = sys.stderr if stderr else sys.stdout
    terminal = stream is not None and stream.isatty()
    return PipeConsole(stderr=stderr, highlight=False, width=None if terminal else 100)


class Reporter:
    """Progress and notes on stderr. The base class says nothing."""

    def note(self, text: str) -> None:
        """Something worth knowing that is no result."""

    def stage(self, what: str) -> None:
        """A stage without a count begins."""

    def __call__(self, what: str, done: int, total: int, loss: float | None = None) -> None:
        """``done`` of ``total`` steps of the stage ``what`` are done."""

    def images(self, done: int, total: int) -> None:
        """Pictures read so far."""
        self("images", done, total)


class LineReporter(Reporter):
    """For logs: a line when a stage begins."""

    def __init__(self) -> None:
        self.current = ""

    def note(self, text: str) -> None:
        print(f"quantinel: note: {one_line(text)}", file=sys.stderr, flush=True)

    def stage(self, what: str) -> None:
        if what != self.current:
            self.current = what
            print(f"quantinel: {_WORDS.get(what, what)}", file=sys.stderr, flush=True)

    def __call__(self, what: str, done: int, total: int, loss: float | None = None) -> None:
        self.stage(what)


class BarReporter(Reporter):
    """For terminals: one bar, which disappears when the work is done."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.current = ""
        self.task: TaskID | None = None

    def note(self, text: str) -> None:
        self.progress.console.print(f"note: {one_line(text)}", markup=False, highlight=False, soft_wrap=True)

    def stage(self, what: str) -> None:
        if what == self.current:
            return
        if self.task is not None:
            self.progress.remove_task(self.task)
        self.current, self.task = what, self.progress.add_task(_WORDS.get(what, what), total=None)

    def __call__(self, what: str, done: int, total: int, loss: float | None = None) -> None:
        self.stage(what)
        if self.task is not None:
            words = _WORDS.get(what, what)
            described = words if loss is None else f"{words} (loss {loss:.3f})"
            self.progress.update(self.task, completed=done, total=total, description=described)


class _Notes(logging.Handler):
    """Warnings that the library logs become notes."""

    def __init__(self, reporter: Reporter) -> None:
        super().__init__(logging.WARNING)
        self.reporter = reporter

    def emit(self, record: logging.LogRecord) -> None:
        self.reporter.note(record.getMessage())


@contextmanager
def reporting(quiet: bool) -> Iterator[Reporter]:
    """The reporter that fits stderr, for as long as a verb works.

    Args:
        quiet: say nothing but errors.
    """
    if quiet:
        yield from _listening(Reporter())
    elif sys.stderr is None or not sys.stderr.isatty():
        yield from _listening(LineReporter())
    else:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TimeElapsedColumn(), console=console(stderr=True), transient=True) as progress:
            yield from _listening(BarReporter(progress))


def _listening(reporter: Reporter) -> Iterator[Reporter]:
    handler = _Notes(reporter)
    logger = logging.getLogger("quantinel")
    logger.addHandler(handler)
    try:
        yield reporter
    finally:
        logger.removeHandler(handler)
