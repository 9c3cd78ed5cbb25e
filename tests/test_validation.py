"""Hyper-parameters that are of another kind than they say, or beyond any meaning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from quantinel.defenses import LAC, AdaRound, EFRAPReleased, Gaussian, Invariant, RandomFlips, Reflect, Stochastic
from quantinel.defenses.shifted_pruning import ShiftedPruning
from quantinel.errors import UsageError
from quantinel.validation import require_non_negative, require_types


@dataclass(frozen=True)
class Options:
    flag: bool = False
    count: int = 1
    rate: float = 0.5
    word: str = "a"
    many: tuple[float, ...] = ()
    maybe: float | None = None
    anything: Any = None


def test_what_fits_its_annotation() -> None:
    require_types(Options())
    require_types(Options(count=np.int64(3), rate=np.float32(0.5), many=(1, 0.5), maybe=2, anything=object()))  # type: ignore[arg-type]
    require_types(Options(rate=1))
    require_types(object())


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("flag", 1, "true or false"),
        ("count", 1.5, "an integer"),
        ("count", True, "an integer"),
        ("rate", "0.5", "a number"),
        ("rate", None, "a number"),
        ("word", b"a", "text"),
        ("many", 0.5, "a tuple, each of its entries a number"),
        ("many", ("x",), "a tuple, each of its entries a number"),
        ("maybe", "x", "a number or None"),
    ],
)
def test_what_does_not(name: str, value: object, wanted: str) -> None:
    with pytest.raises(UsageError, match=f"^{name} is .*; give {wanted}$"):
        require_types(Options(**{name: value}))  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [None, "1", object()])
def test_a_number_is_one_whatever_its_annotation(value: object) -> None:
    with pytest.raises(UsageError, match=r"^anything is .*; give a number from 0"):
        require_non_negative(Options(anything=value), "anything")


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        (LAC, {"bound": "x"}),
        (LAC, {"learning_rate": 1e30}),
        (LAC, {"batch_size": 10**11}),
        (AdaRound, {"iterations": 1.5}),
        (EFRAPReleased, {"flip_weight": 1e300}),
        (Reflect, {"reach": 1e200}),
        (Reflect, {"bias_correction": float("nan")}),
        (Invariant, {"bank": "x"}),
        (Gaussian, {"seed": -1}),
        (Stochastic, {"seed": 1 << 64}),
        (RandomFlips, {"fraction": None}),
        (RandomFlips, {"fractions": 0.5}),
        (ShiftedPruning, {"shift": None}),
    ],
)
def test_methods_say_which_option_is_wrong(method: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"^{next(iter(settings))} is "):
        method(**settings)
