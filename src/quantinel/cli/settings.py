"""``--set key=value``: the fields of a method's frozen dataclass, strictly."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any, Literal, Union

from quantinel.errors import QuantinelError, UsageError


def build(config: Callable[..., Any], pairs: Iterable[str], what: str, **fixed: Any) -> Any:
    """Make a config from its defaults and ``key=value`` pairs.

    Args:
        config: a dataclass of hyper-parameters.
        pairs: as on the command line.
        what: name of the method, for messages.
        **fixed: fields that options of their own set; ``--set`` refuses them.

    Raises:
        UsageError: an unknown key, a key twice, or a value of the wrong type; the message lists the fields.
    """
    hints = typing.get_type_hints(config)
    fields = {field.name: field for field in dataclasses.fields(config) if field.name not in fixed}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or key not in fields or key in values:
            problem = "is given twice" if key in values else "is unknown" if equals else "is not KEY=VALUE"
            shown = key if equals else pair
            raise UsageError(f"--set: {shown!r} {problem}; {_listing(what, fields.values())}")
        try:
            values[key] = _parse(text.strip(), hints[key])
        except ValueError as error:
            raise UsageError(f"--set: {key} {error}, got {text!r}; {_listing(what, fields.values())}") from error
    try:
        return config(**values, **fixed)
    except QuantinelError:
        raise
    except (ValueError, TypeError) as error:
        raise UsageError(f"--set: {what} refuses these options: {error}") from error


def _listing(what: str, fields: Iterable[dataclasses.Field[Any]]) -> str:
    """All fields with their defaults."""
    listed = ", ".join(f"{field.name}={_shown(field)}" for field in fields)
    return f"{what} takes {listed}" if listed else f"{what} has no options"


def _shown(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return str(field.default)
    return "..." if field.default_factory is dataclasses.MISSING else str(field.default_factory())


def _parse(text: str, hint: Any) -> Any:
    """A value of the type that the field declares.

    Raises:
        ValueError: ``text`` is none; the message reads "must be ...".
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        for choice in arguments:
            if str(choice) == text:
                return choice
        raise ValueError(f"must be one of {', '.join(map(str, arguments))}")
    if origin in (Union, types.UnionType):
        if text.lower() == "none" and type(None) in arguments:
            return None
        return _parse(text, next(argument for argument in arguments if argument is not type(None)))
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(_parse(part.strip(), arguments[0]) for part in text.split(",") if part.strip())
    if hint is bool:
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
        raise ValueError("must be true or false")
    if hint is int:
        return _number(text, int, "an integer")
    if hint is float:
        return _number(text, float, "a number")
    if hint is str:
        return text
    raise ValueError("cannot be set on the command line")


def _number(text: str, kind: Callable[[str], float], described: str) -> float:
    try:
        value = kind(text)
    except ValueError as error:
        raise ValueError(f"must be {described}") from error
    if not math.isfinite(value):
        raise ValueError(f"must be {described} that is finite")
    return value
