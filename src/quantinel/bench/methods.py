"""From names and options in a suite to registered methods and their configurations, strictly."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pydantic import JsonValue, TypeAdapter, ValidationError

from quantinel.errors import QuantinelError, UsageError
from quantinel.quantization.scheme import parse_scheme

_SHOWN = 20


def known(name: str, names: Collection[str], what: str) -> str:
    """``name`` if it is one of ``names``.

    Raises:
        UsageError: it is none; the message suggests the nearest.
    """
    if name in names:
        return name
    close = difflib.get_close_matches(name, names, 1)
    raise UsageError(
        f"unknown {what} {name!r}; "
        + (
            f"did you mean {close[0]!r}?"
            if close
            else f"choose one of {_shown(list(names))}"
            if names
            else "none exists"
        )
    )


def _shown(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def attack_config(config: Any, settings: Mapping[str, JsonValue], schemes: Sequence[str], what: str) -> Any:
    """The configuration of an attack that is armed for ``schemes``; without them, for those of its defaults.

    Raises:
        UsageError: as `configure`, or schemes for an attack that takes none.
    """
    if schemes and "schemes" not in {field.name for field in dataclasses.fields(config)}:
        raise UsageError(f"{what} takes no schemes; remove them")
    fixed = {"schemes": tuple(parse_scheme(name) for name in schemes)} if schemes else {}
    return configure(config, settings, what, **fixed)


def configure(config: Any, settings: Mapping[str, JsonValue], what: str, **fixed: Any) -> Any:
    """A method's frozen dataclass from its defaults and ``settings``.

    Args:
        config: the dataclass.
        settings: options by name.
        what: name of the method, for messages.
        **fixed: fields that are not options.

    Raises:
        UsageError: an unknown option, or a value of the wrong type or out of range.
    """
    hints = typing.get_type_hints(config)
    fields = [field.name for field in dataclasses.fields(config) if field.name not in fixed]
    values: dict[str, Any] = {}
    for name, value in settings.items():
        if name not in fields:
            close = difflib.get_close_matches(name, fields, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"it takes {', '.join(fields) or 'none'}"
            raise UsageError(f"{what} has no option {name!r}; {hint}")
        try:
            values[name] = TypeAdapter(hints[name]).validate_python(value)
        except ValidationError as error:
            raise UsageError(f"{what}: {name} is {value!r}; {error.errors()[0]['msg']}") from error
    try:
        return config(**values, **fixed)
    except QuantinelError as error:
        raise UsageError(f"{what}: {error}") from error
