"""Validation of hyper-parameters, with messages for the command line."""

from __future__ import annotations

import math
from collections.abc import Sequence

from quantinel.errors import UsageError


def require_non_negative(options: object, *names: str) -> None:
    """Finite and at least 0.

    Raises:
        UsageError: otherwise.
    """
    for name in names:
        value = getattr(options, name)
        if not (isinstance(value, int | float) and math.isfinite(value) and value >= 0):
            raise UsageError(f"{name} is {value!r}; give a number of at least 0")


def require_positive(options: object, *names: str) -> None:
    """Finite and above 0.

    Raises:
        UsageError: otherwise.
    """
    for name in names:
        value = getattr(options, name)
        if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
            raise UsageError(f"{name} is {value!r}; give a number above 0")


def require_positive_integers(options: object, *names: str) -> None:
    """Integers of at least 1.

    Raises:
        UsageError: otherwise.
    """
    for name in names:
        value = getattr(options, name)
        if not (isinstance(value, int) and value >= 1):
            raise UsageError(f"{name} is {value!r}; give an integer of at least 1")


def require_choice(options: object, name: str, choices: Sequence[str]) -> None:
    """One of the listed words.

    Raises:
        UsageError: otherwise.
    """
    if getattr(options, name) not in choices:
        raise UsageError(f"{name} is {getattr(options, name)!r}; choose one of {', '.join(choices)}")


def require_rate(options: object, *names: str) -> None:
    """Finite, at least 0 and below 1.

    Raises:
        UsageError: otherwise.
    """
    for name in names:
        value = getattr(options, name)
        if not (isinstance(value, int | float) and 0 <= value < 1):
            raise UsageError(f"{name} is {value!r}; give a number of at least 0 and below 1")
