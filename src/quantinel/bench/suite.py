"""Suites: a table of the field as a TOML file. Strict: a name that means nothing is an error before any work.

A suite names data, models, attacks, defenses and detectors, multiplies them into cells, and puts published figures
beside the cells that reproduce them. ``include`` shares names between suites; ``groups`` are lists of names, used as
``@group``, so that a method is added to every suite that uses the group by one line.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, model_validator


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
        limit: evaluate on a fixed class-balanced subset of this many images; None for all, or the data's own limit.
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
        calibration: unlabeled images; without it, images of the training split. "synthetic" makes them from what the
            cell's network remembers.
        calibration_images: how many, instead of the run's number.
        calibration_triggered: share of them that carries the model's own trigger, in percent: a poisoned calibration
            set.
        calibration_class: take labelled ones of this class alone: what a careless choice of images does.
        train: labelled training images (split train), for attacks and clean training.
        train_limit: train on a class-balanced subset.
        test_limit: judge attacks on such a subset, and evaluate on it too where the run has no limit.
    """

    test: str
    calibration: str | None = None
    calibration_images: int | None = Field(None, ge=2)
    calibration_triggered: float | None = Field(None, gt=0, le=100)
    calibration_class: int | None = Field(None, ge=0)
    train: str | None = None
    train_limit: int | None = Field(None, ge=1)
    test_limit: int | None = Field(None, ge=1)


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


class Lender(_Strict):
    """An attack of the suite whose victim lends its trigger, with the seed of the cell.

    Attributes:
        attack: name in ``[attacks]`` or of ``quantinel list attacks``.
        model: name in ``[models]``: the network that it is run on.
    """

    attack: str
    model: str


class AttackMethod(Method):
    """An attack.

    Attributes:
        schemes: quantizers to arm for; without them the attack's own default.
        trigger_of: for attacks that take a trigger: whose; it is trained once for all that name it.
    """

    schemes: Names = []
    trigger_of: Lender | None = None


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
        if (self.schemes or self.calibration) and not (self.defenses or self.detectors):
            raise ValueError('schemes and calibration need defenses or detectors; "nearest" is ordinary deployment')
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
