"""Errors that a user can act on, each with the exit code of the command line.

Exit codes: 0 pass, 1 findings, 2 error or inconclusive, 3 nothing supported in the input, 4 usage.
Every message is one line and says what to do next.
"""

from __future__ import annotations

EXIT_PASS = 0
EXIT_FINDINGS = 1
EXIT_ERROR = 2
EXIT_UNSUPPORTED = 3
EXIT_USAGE = 4


class QuantinelError(Exception):
    """Base of all errors that Quantinel raises on purpose."""

    exit_code: int = EXIT_ERROR


class InputError(QuantinelError):
    """The input exists but cannot be used: corrupt, truncated, of the wrong shape, not finite."""


class OutputError(QuantinelError):
    """The result could not be written; nothing half-written was left behind."""


class VerificationError(QuantinelError):
    """An artefact on disk is not the one that was audited, or could not be checked."""


class GateError(QuantinelError):
    """An attack did not produce a victim that sleeps in float and wakes after compression."""


class Interrupted(QuantinelError):  # noqa: N818 (nothing went wrong)
    """A long run was asked to stop and kept its state."""


class UnsupportedError(QuantinelError):
    """The input is well formed, but nothing in it (or one operator of it) is supported."""

    exit_code = EXIT_UNSUPPORTED


class UsageError(QuantinelError):
    """The request itself is wrong: an unknown name, a bad combination of options."""

    exit_code = EXIT_USAGE


class NotAssessable(QuantinelError):  # noqa: N818 (nothing went wrong)
    """A detector cannot judge this model, scheme or data; the message says why and what would help."""


def first_line(error: Exception) -> str:
    """What an error of another library says in its first line, or its type where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
