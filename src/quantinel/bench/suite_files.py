"""Suite files: found by name, read with what they include, and checked."""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from quantinel.bench.suite import AttackMethod, Cells, Data, Method, Model, Published, Run, Suite
from quantinel.errors import InputError, UsageError

BUNDLED = Path(__file__).parent.parent / "assets" / "suites"
_SHARED_TABLES = ("data", "models", "attacks", "defenses", "detectors", "groups")


def suite_names(folder: Path | None) -> list[str]:
    """Suites that can be named: those of ``folder`` and the bundled ones."""
    found = {path.stem for place in (folder, BUNDLED) if place is not None for path in place.glob("*.toml")}
    return sorted(name for name in found if not name.startswith("_"))


def find_suite(name: str, folder: Path | None) -> Path:
    """The file of a suite: a path, or a name in ``folder`` or among the bundled suites.

    Raises:
        UsageError: there is none; the message lists the names.
    """
    if name.endswith(".toml"):
        return Path(name)
    for place in (folder, BUNDLED):
        if place is not None and (place / f"{name}.toml").is_file():
            return place / f"{name}.toml"
    elsewhere = "" if folder is not None else "; benchmarks/suites is looked for in the current folder"
    raise UsageError(f"unknown suite {name!r}; give a .toml file or one of {', '.join(suite_names(folder))}{elsewhere}")


def load_suite(path: Path, given: str | None = None) -> Suite:
    """Read and check a suite.

    Args:
        path: its file.
        given: how the user named it; the file's own name if None.

    Raises:
        InputError: missing, not TOML, or not a suite; the message names the field.
    """
    tables = _with_includes(path)
    for name in _names(path, tables, "suites"):
        _add_suite(path, tables, name)
    for reserved in {"name", "given"} & set(tables):
        raise InputError(f"{path}: a suite is called by the name of its file; remove {reserved!r}")
    try:
        return Suite.model_validate({"name": path.stem, "given": given or path.stem, **tables})
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in item['loc'])}: {_explained(item['type'], item['msg'], item['loc'])}"
            for item in error.errors()[:3]
        )
        raise InputError(f"{path} is not a suite: {problems}") from error


def _explained(kind: str, message: str, where: tuple[int | str, ...]) -> str:
    """What is wrong with a field; for an unknown name, the nearest one that exists."""
    if kind != "extra_forbidden":
        return message.removeprefix("Value error, ")
    table = Suite if len(where) == 1 else _TABLES[str(where[0])]
    names = [name for name in table.model_fields if name != "name"]
    close = difflib.get_close_matches(str(where[-1]), names, 1)
    return f"unknown; did you mean {close[0]!r}?" if close else f"unknown; choose one of {', '.join(names)}"


_TABLES: dict[str, type[BaseModel]] = {
    "run": Run, "data": Data, "models": Model, "attacks": AttackMethod, "defenses": Method, "detectors": Method,
    "cells": Cells, "published": Published,
}  # fmt: skip


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give the .toml file of a suite") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML: {error}") from error


def _with_includes(path: Path) -> dict[str, Any]:
    """A suite's tables, and those of the files that it includes."""
    tables = _read(path)
    for name in _names(path, tables, "include"):
        included = path.parent / name
        shared = _read(included)
        for key in shared:
            if key not in _SHARED_TABLES:
                raise InputError(f"{included}: {key!r} cannot be included; only {', '.join(_SHARED_TABLES)} can")
            own = _table(path, tables, key)
            if not isinstance(shared[key], dict):
                raise InputError(f"{included}: {key} is a table; write [{key}.NAME]")
            twice = sorted(set(own) & set(shared[key]))
            if twice:
                raise InputError(f"{path}: {key}.{twice[0]} is defined here and in {included.name}; rename one")
            own.update(shared[key])
    return tables


def _add_suite(path: Path, tables: dict[str, Any], name: str) -> None:
    """Add another suite's names, cells and published figures; how they are run is for the first suite to say."""
    other = _with_includes(path.parent / f"{name}.toml")
    if "suites" in other:
        raise InputError(f"{path}: {name} gathers suites itself; name those instead")
    for key in _SHARED_TABLES:
        own = _table(path, tables, key)
        for entry, value in _table(path, other, key).items():
            if own.setdefault(entry, value) != value:
                raise InputError(f"{path}: {key}.{entry} of the suite {name} means something else here; rename one")
    for key in ("cells", "published"):
        tables[key] = [*tables.get(key, []), *other.get(key, [])]


def _table(path: Path, tables: dict[str, Any], key: str) -> dict[str, Any]:
    own = tables.setdefault(key, {})
    if not isinstance(own, dict):
        raise InputError(f"{path}: {key} is a table; write [{key}.NAME]")
    return own


def _names(path: Path, tables: dict[str, Any], key: str) -> list[str]:
    names = tables.pop(key, [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        example = "_methods.toml" if key == "include" else "efrap"
        raise InputError(f'{path}: {key} is a list of names, for example ["{example}"]')
    return names
