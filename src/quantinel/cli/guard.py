"""Errors, signals and broken pipes become one line on stderr and an exit code; never a traceback.

SIGINT, SIGTERM and SIGHUP unwind the stack like an exception, so that folders that are being written are
removed on the way out.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from quantinel.errors import EXIT_ERROR, QuantinelError
from quantinel.plugins import place_in_plugin

DEBUG_VARIABLE = "QUANTINEL_DEBUG"
_EXIT_BROKEN_PIPE = 128 + 13
_CLEANUP_SECONDS = 1.0
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Interrupted(KeyboardInterrupt):
    """A signal asked the program to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def guarded(work: Callable[[], int]) -> int:
    """Run ``work`` and return the exit code of the process.

    Args:
        work: returns the exit code of a verb that came to its end.
    """
    with _signals(), _quiet_libraries():
        try:
            code = work()
            if sys.stdout is not None:
                sys.stdout.flush()
            return code
        except BaseException as error:  # libraries written in Rust panic with a BaseException of their own
            message, code = _explain(error)
        if message is not None:
            _say(message)
        return code


def _explain(error: BaseException) -> tuple[str | None, int]:
    """The line for stderr (None for silence) and the exit code."""
    if os.environ.get(DEBUG_VARIABLE):
        traceback.print_exception(error)
    if isinstance(error, QuantinelError):
        return f"error: {error}", error.exit_code
    if isinstance(error, KeyboardInterrupt):
        number = error.number if isinstance(error, Interrupted) else signal.SIGINT
        return f"stopped by {signal.Signals(number).name}; no unfinished output was left", 128 + number
    if isinstance(error, BrokenPipeError):
        _discard_stdout()
        return None, _EXIT_BROKEN_PIPE
    if isinstance(error, MemoryError) or _is_allocation(error):
        return "error: not enough memory; give fewer images (--limit, --calibration-images)", EXIT_ERROR
    if isinstance(error, OSError):
        return f"error: {_explain_os_error(error)}", EXIT_ERROR
    if isinstance(error, SystemExit):
        return f"error: the program was ended from inside (SystemExit: {error.code}); no verdict", EXIT_ERROR
    name = type(error).__name__
    place = place_in_plugin(error)
    if place is not None:
        return (
            f"error: the plugin {place} fails: {name}: {error}; run again with {DEBUG_VARIABLE}=1 for the traceback",
            EXIT_ERROR,
        )
    return (
        f"error: unexpected {name}: {error}; this is a bug in Quantinel, run again with {DEBUG_VARIABLE}=1 for "
        "the traceback and report it",
        EXIT_ERROR,
    )


def _is_allocation(error: BaseException) -> bool:
    """Whether torch failed to allocate; it raises a plain RuntimeError."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("not enough memory" in text or "can't allocate memory" in text)


def _explain_os_error(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in _FULL:
        _discard_stdout()  # it may be stdout that cannot be written
        return f"{where}the disk is full; free some space and run again"
    reason = error.strerror or str(error) or type(error).__name__
    return f"{where}{reason}; check the path and its permissions"


def _discard_stdout() -> None:
    """Let the interpreter flush what is left of stdout into nothing when it ends."""
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError, AttributeError):  # captured, closed or missing
        return
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)


def _say(message: str) -> None:
    try:
        print(f"quantinel: {one_line(message)}", file=sys.stderr, flush=True)
    except (OSError, ValueError):  # stderr is full, closed or a broken pipe: the exit code still tells
        return


def one_line(text: str) -> str:
    """``text`` on one line, control characters spelled out: parts of it come from files that nobody vouches for."""
    joined = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in joined)


@contextmanager
def _signals() -> Iterator[None]:
    """Turn signals into `Interrupted`; those that the parent told us to ignore (nohup) stay ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    last = -_CLEANUP_SECONDS

    def stop(number: int, _frame: FrameType | None) -> None:
        nonlocal last
        now = time.monotonic()
        impatient = now - last < _CLEANUP_SECONDS  # a second Ctrl-C must not break off the cleaning up
        last = now
        if not impatient:
            raise Interrupted(number)

    previous = {}
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # SIGHUP does not exist everywhere
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            previous[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Keep the warnings and log lines of libraries off the terminal, unless they were asked for."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if os.environ.get(DEBUG_VARIABLE) or sys.warnoptions:
        yield
        return
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    root, silence = logging.getLogger(), logging.NullHandler()
    root.addHandler(silence)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            root.removeHandler(silence)
