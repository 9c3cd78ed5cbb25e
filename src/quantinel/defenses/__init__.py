"""Ways to choose the integers, to repair a network before that, and to choose what pruning removes, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, get_args

from quantinel.defenses.adaround import AdaRound
from quantinel.defenses.dithered_pruning import DitheredPruning
from quantinel.defenses.efrap import EFRAP
from quantinel.defenses.efrap_released import EFRAPReleased
from quantinel.defenses.fine_pruning import FinePruning
from quantinel.defenses.fine_tuning import FineTuning
from quantinel.defenses.ft_sam import FTSAM
from quantinel.defenses.gaussian import Gaussian
from quantinel.defenses.gptq import GPTQ
from quantinel.defenses.i_bau import IBAU
from quantinel.defenses.invariant import Invariant
from quantinel.defenses.lac import LAC
from quantinel.defenses.lac_pda import LACPDA
from quantinel.defenses.mode_connectivity import ModeConnectivityRepair
from quantinel.defenses.nad import NAD
from quantinel.defenses.nearest import Nearest
from quantinel.defenses.pruning import PruningMethod
from quantinel.defenses.qvec import QVec
from quantinel.defenses.random_flips import RandomFlips
from quantinel.defenses.reflect import Reflect
from quantinel.defenses.repair import RepairMethod, repaired
from quantinel.defenses.shifted_pruning import ShiftedPruning
from quantinel.defenses.stochastic import Stochastic
from quantinel.errors import UsageError
from quantinel.quantization.reconstruction import Needs, RoundingMethod

__all__ = [
    "DEFAULT_ROUNDING",
    "DEFENSES",
    "EFRAP",
    "FTSAM",
    "GPTQ",
    "IBAU",
    "LAC",
    "LACPDA",
    "NAD",
    "PRUNING_DEFENSES",
    "REPAIRS",
    "AdaRound",
    "Defense",
    "DitheredPruning",
    "EFRAPReleased",
    "FinePruning",
    "FineTuning",
    "Gaussian",
    "Invariant",
    "ModeConnectivityRepair",
    "Nearest",
    "PruningDefense",
    "QVec",
    "RandomFlips",
    "Reflect",
    "Repair",
    "ShiftedPruning",
    "Stochastic",
    "register",
    "register_pruning",
    "register_repair",
    "repaired",
    "rounding_method",
]


_Method = TypeVar("_Method")


@dataclass(frozen=True)
class Registered(Generic[_Method]):
    """A method by name.

    Attributes:
        name: on the command line and in suites; no two methods of any kind share one, for suites list them together.
        summary: one line.
        build: takes its options by name.
    """

    name: str
    summary: str
    build: Callable[..., _Method]


_Entry = TypeVar("_Entry", bound=Registered[Any])


@dataclass(frozen=True)
class Defense(Registered[RoundingMethod]):
    """A registered rounding method.

    Attributes:
        adjacent: every weight gets one of its two neighbours on the grid; otherwise it may move further.
    """

    adjacent: bool = True


DEFENSES: dict[str, Defense] = {
    defense.name: defense
    for defense in (
        Defense("nearest", "round to nearest: no defense", Nearest),
        Defense(
            "invariant", "the default: reflect, and no answer to what is stamped on images", Invariant, adjacent=False
        ),
        Defense("reflect", "reconstruct weights mirrored at their rounding error", Reflect),
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


DEFAULT_ROUNDING = Invariant.name
"""What `harden` chooses integers with unless it is told otherwise."""


@dataclass(frozen=True)
class Repair(Registered[RepairMethod]):
    """A registered repair of the float network, with labelled clean images, before its weights are rounded."""


REPAIRS: dict[str, Repair] = {
    repair.name: repair
    for repair in (
        Repair("ft", "fine-tuning on clean images", FineTuning),
        Repair("fp", "Fine-Pruning (RAID 2018): remove idle features, then fine-tune", FinePruning),
        Repair("mcr", "mode connectivity repair (ICLR 2020): a point on the way to a copy", ModeConnectivityRepair),
        Repair("nad", "NAD (ICLR 2021): attention maps of a fine-tuned teacher", NAD),
        Repair("i-bau", "I-BAU (ICLR 2022): unlearn universal perturbations by the implicit hypergradient", IBAU),
        Repair("ft-sam", "FT-SAM (ICCV 2023): sharpness-aware fine-tuning", FTSAM),
    )
}


@dataclass(frozen=True)
class PruningDefense(Registered[PruningMethod]):
    """A registered way to choose other masks than the attacker expects."""


PRUNING_DEFENSES: dict[str, PruningDefense] = {
    defense.name: defense
    for defense in (
        PruningDefense("shifted-pruning", "prune at another rate than the attacker counted on", ShiftedPruning),
        PruningDefense("dithered-pruning", "draw at random what goes near the pruning threshold", DitheredPruning),
    )
}


def register(defense: Defense) -> Defense:
    """Add a rounding method, for plugins.

    Raises:
        UsageError: the name is taken, or the method needs something that does not exist.
    """
    needs = getattr(defense.build, "needs", None)
    if isinstance(needs, str) and needs not in get_args(Needs):
        raise UsageError(f"{defense.name} needs {needs!r}; write one of {', '.join(get_args(Needs))}")
    return _add(DEFENSES, defense)


def register_repair(repair: Repair) -> Repair:
    """Add a repair, for plugins.

    Raises:
        UsageError: the name is taken.
    """
    return _add(REPAIRS, repair)


def register_pruning(defense: PruningDefense) -> PruningDefense:
    """Add a defense of deployers who prune, for plugins.

    Raises:
        UsageError: the name is taken.
    """
    return _add(PRUNING_DEFENSES, defense)


def _add(registry: dict[str, _Entry], method: _Entry) -> _Entry:
    """Register a method under a name that no defense of any kind has."""
    if method.name in {*DEFENSES, *REPAIRS, *PRUNING_DEFENSES}:
        raise UsageError(f"there is a defense called {method.name!r} already; choose another name")
    registry[method.name] = method
    return method


def rounding_method(name: str) -> RoundingMethod:
    """A rounding method with its default hyper-parameters.

    Raises:
        UsageError: unknown name.
    """
    if name not in DEFENSES:
        raise UsageError(f"unknown rounding {name!r}; choose one of {', '.join(DEFENSES)}")
    return DEFENSES[name].build()
