"""Suites: a table of the field as a TOML file. Strict: a name that means nothing is an error before any work.

A suite names data, models, attacks, defenses and detectors, multiplies them into cells, and puts published figures
beside the cells that reproduce them. ``include`` shares names between suites; ``groups`` are lists of names, used as
``@group``, so that a method is added to every suite that uses the group by one line.
"""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, ValidationError, model_validator

from quantinel.errors import InputError, UsageError

BUNDLED = Path(__file__).parent.parent / "assets" / "suites"
_SHARED_TABLES = ("data", "models", "attacks", "defenses", "detectors", "groups")


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str | int) else value


Names = Annotated[list[str], BeforeValidator(_listed)]
Seeds = Annotated[list[Annotated[int, Field(ge=0)]], BeforeValidator(_listed), Field(min_length=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Run(_Strict):
    """How all cells are run.

    Attributes:
        seeds: every cell is run with each.
        calibration_images: unlabeled images for calibration, drawn with the cell's seed.
        limit: evaluate on a fixed class-balanced subset of this many images; None for all.
        repair_share: share of the training images that repairs get, with labels, drawn with the cell's seed.
        threads: of every stage. Float sums depend on it in the last bits, so it belongs to the suite and not to the
            machine; more workers use more cores.
        backend: runs the quantized models.
    """

    seeds: Seeds = [0]
    calibration_images: int = Field(256, ge=2)
    limit: int | None = Field(None, ge=1)
    repair_share: float = Field(0.05, gt=0, le=1)
    threads: int = Field(1, ge=1)
    backend: Literal["onnxruntime", "simulated"] = "onnxruntime"


class Data(_Strict):
    """Images. ``{root}`` in a specification is the folder given as ``--data-root``.

    Attributes:
        test: labelled evaluation images (split test), as in ``quantinel list data``.
        calibration: unlabeled images; without it, images of the training split.
        train: labelled training images (split train), for attacks and clean training.
        train_limit: train on a class-balanced subset.
    """

    test: str
    calibration: str | None = None
    train: str | None = None
    train_limit: int | None = Field(None, ge=1)


class Model(_Strict):
    """Where a float model comes from: exactly one of ``victim``, ``weights`` and ``training``.

    Attributes:
        data: name in ``[data]``.
        victim: victim directory, or ``bundled:NAME``.
        weights: clean ``.safetensors`` of ``architecture``.
        training: options of clean training from scratch (may be empty).
        architecture: name of ``quantinel list architectures``.
        trigger, target_class: measured on a model that names none itself.
    """

    data: str
    victim: str | None = None
    weights: str | None = None
    training: dict[str, JsonValue] | None = None
    architecture: str | None = None
    trigger: dict[str, JsonValue] | None = None
    target_class: int | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _one_source(self) -> Model:
        if sum(source is not None for source in (self.victim, self.weights, self.training)) != 1:
            raise ValueError("give exactly one of victim, weights and training")
        if (self.victim is None) == (self.architecture is None):
            raise ValueError("weights and training need an architecture, a victim directory names its own")
        if (self.trigger is None) != (self.target_class is None):
            raise ValueError("trigger and target_class belong together")
        if self.victim is not None and self.trigger is not None:
            raise ValueError("a victim directory brings its own trigger; remove trigger and target_class")
        return self


class Method(_Strict):
    """A registered attack, defense or detector with options; a name alone means its defaults.

    Attributes:
        method: registered name.
        settings: options that differ from the defaults.
    """

    method: str
    settings: dict[str, JsonValue] = {}


class AttackMethod(Method):
    """An attack.

    Attributes:
        schemes: quantizers to arm for; without them the attack's own default.
    """

    schemes: Names = []


class Cells(_Strict):
    """A block of cells: all combinations.

    Attributes:
        models: names in ``[models]``.
        attacks: names in ``[attacks]`` or of ``quantinel list attacks``, run on each model; "none" leaves it as it is.
        schemes: deployment grids; "own" is the first that the attack or victim is armed for.
        defenses, detectors: names in the suite's tables, or registered ones.
        calibration: names in ``[data]``; without it the model's own data.
        seeds: instead of the suite's.
    """

    models: Names
    attacks: Names = ["none"]
    schemes: Names = []
    defenses: Names = []
    detectors: Names = []
    calibration: Names = []
    seeds: Seeds | None = None

    @model_validator(mode="after")
    def _something(self) -> Cells:
        if (self.defenses or self.detectors) and not self.schemes:
            raise ValueError("defenses and detectors need schemes")
        return self


class Published(_Strict):
    """Figures of a paper for the cells that match all the given names.

    Attributes:
        source: paper and table.
        cda, asr, ta: percent.
        tolerance: largest absolute difference in points for "reproduced", for each figure.
        note: what differs in the setting.
    """

    source: str
    model: str | None = None
    attack: str | None = None
    scheme: str | None = None
    defense: str | None = None
    cda: float | None = None
    asr: float | None = None
    ta: float | None = None
    tolerance: float = Field(ge=0)
    note: str = ""

    @property
    def figures(self) -> dict[str, float]:
        """The published figures by name."""
        return {name: value for name in ("cda", "asr", "ta") if (value := getattr(self, name)) is not None}


class Suite(_Strict):
    """A validated suite; see `load_suite`.

    Attributes:
        name: of its rows: the file's name without ".toml".
        given: how it was named, for commands that recompute its rows.
    """

    name: str
    given: str
    title: str
    description: str = ""
    run: Run = Run()
    data: dict[str, Data]
    models: dict[str, Model]
    attacks: dict[str, AttackMethod] = {}
    defenses: dict[str, Method] = {}
    detectors: dict[str, Method] = {}
    groups: dict[str, list[str]] = {}
    cells: list[Cells] = Field(min_length=1)
    published: list[Published] = []

    @property
    def uses_root(self) -> bool:
        """Whether anything in it lies below the data root."""
        named = [value for data in self.data.values() for value in (data.test, data.calibration, data.train)]
        named += [value for model in self.models.values() for value in (model.victim, model.weights)]
        return any("{root}" in value for value in named if value is not None)


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
