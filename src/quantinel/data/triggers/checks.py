"""Checks that all triggers share."""

from __future__ import annotations

import math

from torch import Tensor

from quantinel.errors import InputError


def require_float(images: Tensor) -> None:
    """Refuse bytes.

    Raises:
        InputError: the images are not floats.
    """
    # A value of 1.0 is white among floats and all but black among bytes.
    if not images.is_floating_point():
        raise InputError(f"trigger: the images are {images.dtype}; convert them to floats in [0, 1] first")


def require_number(trigger: object, name: str, low: float, high: float) -> None:
    """A finite number in [low, high].

    Raises:
        InputError: otherwise.
    """
    value = getattr(trigger, name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"trigger: {name} must be a number, got {value!r}")
    if not low <= value <= high:
        raise InputError(f"trigger: {name} is {value}; give a number from {low:g} to {high:g}")


def require_integer(trigger: object, name: str, low: int, high: int = 2**31) -> None:
    """An integer in [low, high].

    Raises:
        InputError: otherwise.
    """
    value = getattr(trigger, name)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InputError(f"trigger: {name} must be an integer from {low} to {high}, got {value!r}")


def require_numbers(name: str, values: object, count: int, low: float, high: float) -> tuple[float, ...]:
    """``count`` finite numbers in [low, high], as floats.

    Raises:
        InputError: otherwise.
    """
    given = list(values) if isinstance(values, list | tuple) else []
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in given)
    if len(given) != count or not numbers or not all(low <= value <= high for value in given):
        raise InputError(f"trigger: {name} must hold {count} numbers from {low:g} to {high:g}, got {values!r}")
    return tuple(float(value) for value in given)
