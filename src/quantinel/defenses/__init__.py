"""Ways to choose the integers, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from quantinel.defenses.efrap import EFRAP
from quantinel.defenses.efrap_released import EFRAPReleased
from quantinel.defenses.nearest import Nearest
from quantinel.errors import UsageError
from quantinel.plugins import add
from quantinel.quantization.reconstruction import RoundingMethod

__all__ = ["DEFENSES", "EFRAP", "Defense", "EFRAPReleased", "Nearest", "register", "rounding_method"]


@dataclass(frozen=True)
class Defense:
    """A registered rounding method: ``build`` takes its hyper-parameters by name."""

    name: str
    summary: str
    build: Callable[..., RoundingMethod]


DEFENSES: dict[str, Defense] = {
    defense.name: defense
    for defense in (
        Defense("nearest", "round to nearest: no defense", Nearest),
        Defense("efrap", "EFRAP (CVPR 2024) in closed form: second moments and coordinate descent", EFRAP),
        Defense("efrap-released", "EFRAP as its authors released it: Adam on relaxed roundings", EFRAPReleased),
    )
}


def register(defense: Defense) -> Defense:
    """Add a rounding method, for plugins.

    Raises:
        UsageError: the name is taken.
    """
    return add(DEFENSES, defense.name, defense, "a defense")


def rounding_method(name: str) -> RoundingMethod:
    """A rounding method with its default hyper-parameters.

    Raises:
        UsageError: unknown name.
    """
    if name not in DEFENSES:
        raise UsageError(f"unknown rounding {name!r}; choose one of {', '.join(DEFENSES)}")
    return DEFENSES[name].build()
