"""Validation of hyper-parameters, with messages for the command line.

The fields of the whole dataclass are held against their annotations first, whichever of them a check is about.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Sequence
from numbers import Integral, Real

from quantinel.errors import UsageError

_LARGEST = 1e15
"""No option means anything beyond; squares of more leave float32."""
_SEEDS = 1 << 64
_KINDS = {bool: "true or false", int: "an integer", float: "a number", str: "text"}


def require_types(options: object) -> None:
    """Every field that is annotated as a flag, a number, text, or a tuple of them is one.

    Raises:
        UsageError: otherwise.
    """
    for name, hint in _hints(type(options)).items():
        if not _fits(getattr(options, name), hint):
            raise UsageError(f"{name} is {getattr(options, name)!r}; give {_kind(hint)}")


def _hints(options: type) -> dict[str, typing.Any]:
    if not dataclasses.is_dataclass(options):
        return {}
    try:
        hints = typing.get_type_hints(options)
    except NameError:  # a name that is imported for the type checker alone
        return {}
    return {field.name: hints[field.name] for field in dataclasses.fields(options)}


def _fits(value: object, hint: typing.Any) -> bool:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(hint))
    if origin is tuple and typing.get_args(hint)[1:] == (...,):
        return isinstance(value, tuple) and all(_fits(item, typing.get_args(hint)[0]) for item in value)
    if hint is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, Real) and not isinstance(value, bool)
    return hint not in (bool, str, types.NoneType) or isinstance(value, hint)


def _kind(hint: typing.Any) -> str:
    options = typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_kind(option) for option in options)
    if typing.get_origin(hint) is tuple:
        return f"a tuple, each of its entries {_kind(options[0])}"
    return "None" if hint is types.NoneType else _KINDS.get(hint, str(getattr(hint, "__name__", hint)))


def _require(
    options: object, names: Sequence[str], kind: type, accepts: Callable[[typing.Any], bool], wanted: str
) -> None:
    """All fields fit their annotations, and the named ones are of a kind of number and accepted."""
    require_types(options)
    for name in names:
        value = getattr(options, name)
        if not (isinstance(value, kind) and accepts(value)):
            raise UsageError(f"{name} is {value!r}; give {wanted}")


def require_non_negative(options: object, *names: str) -> None:
    """From 0 to 1e15.

    Raises:
        UsageError: otherwise.
    """
    _require(options, names, Real, lambda value: 0 <= value <= _LARGEST, f"a number from 0 to {_LARGEST:g}")


def require_positive(options: object, *names: str) -> None:
    """Above 0, and at most 1e15.

    Raises:
        UsageError: otherwise.
    """
    wanted = f"a number above 0, and at most {_LARGEST:g}"
    _require(options, names, Real, lambda value: 0 < value <= _LARGEST, wanted)


def require_positive_integers(options: object, *names: str) -> None:
    """Integers of at least 1.

    Raises:
        UsageError: otherwise.
    """
    _require(options, names, Integral, lambda value: value >= 1, "an integer of at least 1")


def require_seeds(options: object, *names: str) -> None:
    """What torch takes as one.

    Raises:
        UsageError: otherwise.
    """
    _require(options, names, Integral, lambda value: 0 <= value < _SEEDS, "an integer from 0 to 2^64 - 1")


def require_rate(options: object, *names: str) -> None:
    """Finite, at least 0 and below 1.

    Raises:
        UsageError: otherwise.
    """
    _require(options, names, Real, lambda value: 0 <= value < 1, "a number of at least 0 and below 1")


def require_choice(options: object, name: str, choices: Sequence[str]) -> None:
    """One of the listed words.

    Raises:
        UsageError: otherwise.
    """
    require_types(options)
    if getattr(options, name) not in choices:
        raise UsageError(f"{name} is {getattr(options, name)!r}; choose one of {', '.join(choices)}")
