"""Calibrated thresholds: what a detector's figure must pass to count, and how often harmless models pass it.

The file is written by ``benchmarks/calibrate_scan.py``: thresholds are fitted on some recipes of harmless models and
their false-positive rate is measured on others. A detector without an entry for a number of bits is not calibrated
there: it can warn, and neither fail nor pass a model. What a detector of pruning finds depends on no grid, so its entry
names no bits.
"""

from __future__ import annotations

from importlib import resources
from itertools import combinations
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from quantinel.audit.report import Rate
from quantinel.audit.rules import on_grid
from quantinel.errors import InputError

ASSET = "thresholds.json"
Statistic = Literal["score", "p_value"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Threshold(_Strict):
    """One detector on one range of bits, with its default options.

    Attributes:
        detector: name as in ``quantinel list detectors``.
        statistic: "score" fails above the threshold, "p_value" at or below it.
        weight_bits: smallest and largest number of weight bits that it holds for; None for detectors that look at no
            grid (`quantinel.audit.rules.on_grid`).
        threshold: the limit.
        false_positives: harmless models beyond the limit, among models that took no part in fitting it.
        fitted_on: recipes of the harmless models that it was fitted on.
        fitted_models: how many they were.
        judged_on: recipes of those that ``false_positives`` was counted on; none of ``fitted_on``.
        images: fewest images that a detector had in either; 0 for detectors that need none.
    """

    detector: str = Field(min_length=1)
    statistic: Statistic
    weight_bits: tuple[int, int] | None
    threshold: FiniteFloat
    false_positives: Rate
    fitted_on: list[str] = Field(min_length=1)
    fitted_models: int = Field(ge=1)
    judged_on: list[str] = Field(min_length=1)
    images: int = Field(ge=0)

    @model_validator(mode="after")
    def _check(self) -> Threshold:
        if (self.weight_bits is None) == on_grid(self.detector):
            raise ValueError(
                f"{self.detector} looks at a grid; give weight_bits"
                if self.weight_bits is None
                else f"{self.detector} looks at no grid; weight_bits must be null"
            )
        if self.weight_bits is not None and not 2 <= self.weight_bits[0] <= self.weight_bits[1] <= 8:
            raise ValueError(f"weight_bits {self.weight_bits} is no range within 2 to 8")
        both = sorted(set(self.fitted_on) & set(self.judged_on))
        if both:
            raise ValueError(f"{self.detector} was fitted on recipes that it is judged on: {', '.join(both)}")
        if self.statistic == "p_value" and not 0 < self.threshold < 1:
            raise ValueError(f"the threshold {self.threshold:g} of {self.detector} is no p-value between 0 and 1")
        if not 0 <= self.false_positives.hits <= self.false_positives.n:
            raise ValueError(f"the false-positive rate of {self.detector} counts more models than there were")
        if self.false_positives.n < 1:
            raise ValueError(f"the false-positive rate of {self.detector} was counted on no model")
        return self

    def holds_for(self, weight_bits: int) -> bool:
        """Whether it may judge on a grid of so many bits."""
        return self.weight_bits is None or self.weight_bits[0] <= weight_bits <= self.weight_bits[1]

    def exceeded_by(self, value: float) -> bool:
        """Whether a figure counts as suspicious."""
        return value > self.threshold if self.statistic == "score" else value <= self.threshold


class Thresholds(_Strict):
    """The whole file.

    Attributes:
        alpha: false-positive rate that was aimed at.
        suite: of the benchmark rows, "" where there are none yet.
        rows_sha256: hash of the rows, without fields that are None.
        commit, created, command: of the fit.
        entries: the thresholds; no two for the same detector and bits.
    """

    format: Literal["quantinel-thresholds-1"] = "quantinel-thresholds-1"
    alpha: float = Field(gt=0, lt=1)
    suite: str
    rows_sha256: str
    commit: str
    created: str
    command: str
    entries: list[Threshold]

    @model_validator(mode="after")
    def _check(self) -> Thresholds:
        for first, second in combinations(self.entries, 2):
            overlap = any(first.holds_for(bits) and second.holds_for(bits) for bits in range(2, 9))
            if first.detector == second.detector and overlap:
                raise ValueError(f"{first.detector} has two thresholds for the same number of bits")
        return self

    def find(self, detector: str, weight_bits: int) -> Threshold | None:
        """The entry of a detector for a number of bits; None where it is not calibrated."""
        return next(
            (entry for entry in self.entries if entry.detector == detector and entry.holds_for(weight_bits)), None
        )


def load_thresholds(path: Path | None = None) -> Thresholds:
    """Read a file of thresholds; without a path, the one that comes with Quantinel.

    Raises:
        InputError: it cannot be read, or is not of this schema.
    """
    name = ASSET if path is None else str(path)
    try:
        source = resources.files("quantinel.audit").joinpath(ASSET) if path is None else path
        return Thresholds.model_validate_json(source.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"{name} cannot be read ({error.strerror}); give a file of thresholds") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8 text; write it again with benchmarks/calibrate_scan.py") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise InputError(
            f"{name} holds no valid thresholds: {where}: {first['msg']}; write it again with "
            "benchmarks/calibrate_scan.py"
        ) from error
