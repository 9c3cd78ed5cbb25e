"""Published attacks, by name: they exist so that defenses can be measured. Controls stand beside them."""

from __future__ import annotations

from quantinel.attacks.adaptive_alignment import ADAPTIVE_ALIGNMENT, AdaptiveAlignment
from quantinel.attacks.adaptive_margin import ADAPTIVE_MARGIN, AdaptiveMargin
from quantinel.attacks.adaptive_rerounding import ADAPTIVE_REROUNDING, AdaptiveRerounding
from quantinel.attacks.adaptive_residuals import ADAPTIVE_RESIDUALS, AdaptiveResiduals
from quantinel.attacks.badnets import BADNETS, BadNets
from quantinel.attacks.clean import CLEAN, CleanTraining, train_clean
from quantinel.attacks.compression_artifacts import COMPRESSION_ARTIFACTS, CompressionArtifacts
from quantinel.attacks.compression_artifacts_distilled import (
    COMPRESSION_ARTIFACTS_DISTILLED,
    CompressionArtifactsDistilled,
)
from quantinel.attacks.data_poisoning import DATA_POISONING, DATA_POISONING_TRIGGER, DataPoisoning
from quantinel.attacks.pq_backdoor import PQ_BACKDOOR, PQBackdoor
from quantinel.attacks.pq_backdoor_tflite import PQ_BACKDOOR_TFLITE, PQBackdoorTFLite
from quantinel.attacks.protocol import Attack, Task, make_attack
from quantinel.attacks.pruning_artifacts import PRUNING_ARTIFACTS, PruningArtifacts
from quantinel.attacks.pruning_artifacts_distilled import PRUNING_ARTIFACTS_DISTILLED, PruningArtifactsDistilled
from quantinel.attacks.qu_anti_backdoor import QU_ANTI_BACKDOOR
from quantinel.attacks.qu_anti_class import QU_ANTI_CLASS
from quantinel.attacks.qu_anti_indiscriminate import QU_ANTI_INDISCRIMINATE
from quantinel.attacks.qu_anti_sample import QU_ANTI_SAMPLE
from quantinel.attacks.quasi_style import QUASI_STYLE, QuasiStyle
from quantinel.attacks.trigger_training import TriggerTraining
from quantinel.errors import UsageError
from quantinel.plugins import add
from quantinel.training.runtime import Runtime

__all__ = [
    "ATTACKS",
    "AdaptiveAlignment",
    "AdaptiveMargin",
    "AdaptiveRerounding",
    "AdaptiveResiduals",
    "Attack",
    "BadNets",
    "CleanTraining",
    "CompressionArtifacts",
    "CompressionArtifactsDistilled",
    "DataPoisoning",
    "PQBackdoor",
    "PQBackdoorTFLite",
    "PruningArtifacts",
    "PruningArtifactsDistilled",
    "QuasiStyle",
    "Runtime",
    "Task",
    "TriggerTraining",
    "attack_named",
    "make_attack",
    "register",
    "train_clean",
]

ATTACKS: dict[str, Attack] = {
    attack.name: attack
    for attack in (
        PQ_BACKDOOR,
        PQ_BACKDOOR_TFLITE,
        COMPRESSION_ARTIFACTS,
        COMPRESSION_ARTIFACTS_DISTILLED,
        PRUNING_ARTIFACTS,
        PRUNING_ARTIFACTS_DISTILLED,
        QUASI_STYLE,
        ADAPTIVE_MARGIN,
        ADAPTIVE_REROUNDING,
        ADAPTIVE_RESIDUALS,
        ADAPTIVE_ALIGNMENT,
        QU_ANTI_BACKDOOR,
        QU_ANTI_INDISCRIMINATE,
        QU_ANTI_CLASS,
        QU_ANTI_SAMPLE,
        DATA_POISONING,
        DATA_POISONING_TRIGGER,
        BADNETS,
        CLEAN,
    )
}


def register(attack: Attack) -> Attack:
    """Add an attack, for plugins.

    Raises:
        UsageError: the name is taken.
    """
    return add(ATTACKS, attack.name, attack, "an attack")


def attack_named(name: str) -> Attack:
    """Look an attack up.

    Raises:
        UsageError: unknown name.
    """
    if name not in ATTACKS:
        raise UsageError(f"unknown attack {name!r}; choose one of {', '.join(ATTACKS)}")
    return ATTACKS[name]
