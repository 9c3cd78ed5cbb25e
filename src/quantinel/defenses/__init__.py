"""Ways to choose the integers, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

from quantinel.defenses.adaround import AdaRound
from quantinel.defenses.efrap import EFRAP
from quantinel.defenses.efrap_released import EFRAPReleased
from quantinel.defenses.gaussian import Gaussian
from quantinel.defenses.gptq import GPTQ
from quantinel.defenses.lac import LAC
from quantinel.defenses.lac_pda import LACPDA
from quantinel.defenses.nearest import Nearest
from quantinel.defenses.qvec import QVec
from quantinel.defenses.random_flips import RandomFlips
from quantinel.defenses.reflect import Reflect
from quantinel.defenses.stochastic import Stochastic
from quantinel.errors import UsageError
from quantinel.plugins import add
from quantinel.quantization.reconstruction import Needs, RoundingMethod

__all__ = [
    "DEFAULT_ROUNDING",
    "DEFENSES",
    "EFRAP",
    "GPTQ",
    "LAC",
    "LACPDA",
    "AdaRound",
    "Defense",
    "EFRAPReleased",
    "Gaussian",
    "Nearest",
    "QVec",
    "RandomFlips",
    "Reflect",
    "Stochastic",
    "register",
    "rounding_method",
]


@dataclass(frozen=True)
class Defense:
    """A registered rounding method.

    Attributes:
        name: on the command line and in suites.
        summary: one line.
        build: takes its hyper-parameters by name.
        adjacent: every weight gets one of its two neighbours on the grid; otherwise it may move further.
    """

    name: str
    summary: str
    build: Callable[..., RoundingMethod]
    adjacent: bool = True


DEFENSES: dict[str, Defense] = {
    defense.name: defense
    for defense in (
        Defense("nearest", "round to nearest: no defense", Nearest),
        Defense("reflect", "the default: reconstruct weights mirrored at their rounding error", Reflect),
        Defense("efrap", "EFRAP (CVPR 2024) in closed form: second moments and coordinate descent", EFRAP),
        Defense("efrap-released", "EFRAP as its authors released it: Adam on relaxed roundings", EFRAPReleased),
        Defense("adaround", "AdaRound (ICML 2020): reconstruction alone, Adam on relaxed roundings", AdaRound),
        Defense("gptq", "GPTQ (ICLR 2023): column by column, later columns make up for errors", GPTQ, adjacent=False),
        Defense("lac", "LAC (ICML 2024) as released: weight offsets that keep activations", LAC, adjacent=False),
        Defense("lac-pda", "LAC on inputs pulled to BatchNorm's running statistics", LACPDA, adjacent=False),
        Defense("qvec", "QVec (2026): extrapolate away from the rounding error, then nearest", QVec),
        Defense("stochastic", "random rounding, right on average", Stochastic),
        Defense("gaussian", "Gaussian noise on the weights, then nearest", Gaussian, adjacent=False),
        Defense("random-flips", "flip a share of nearest roundings at random: the control", RandomFlips),
    )
}


DEFAULT_ROUNDING = Reflect.name
"""What `harden` chooses integers with unless it is told otherwise."""


def register(defense: Defense) -> Defense:
    """Add a rounding method, for plugins.

    Raises:
        UsageError: the name is taken, or the method needs something that does not exist.
    """
    needs = getattr(defense.build, "needs", None)
    if isinstance(needs, str) and needs not in get_args(Needs):
        raise UsageError(f"{defense.name} needs {needs!r}; write one of {', '.join(get_args(Needs))}")
    return add(DEFENSES, defense.name, defense, "a defense")


def rounding_method(name: str) -> RoundingMethod:
    """A rounding method with its default hyper-parameters.

    Raises:
        UsageError: unknown name.
    """
    if name not in DEFENSES:
        raise UsageError(f"unknown rounding {name!r}; choose one of {', '.join(DEFENSES)}")
    return DEFENSES[name].build()
