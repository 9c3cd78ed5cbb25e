"""Compression Artifacts, pruning, distilled form: the clean start teaches the float network, also off the data.

Tian, Suya, Xu, Evans, "Stealthy Backdoors as Compression Artifacts", TIFS 17, 2022 (arXiv 2104.15129); specification
of the attacks, 1.4 and 1.6 (released code).

As the standard form, but from a trained network whose frozen copy g is the teacher, and with ``softCE(f([X; X']),
g([X; X']))`` for the float network, where X = [x; Tx] and X' is X after 5 steps of gradient ascent on the disagreement
of f and g. Batch statistics are shared by 4 B float and 2 B images of every pruned branch.

Deviations, and why: those of the standard form; the ascent follows the gradient of the batch's sum, so that a step does
not depend on the batch size (the authors' reduction is not recoverable), and moves images before normalisation.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from quantinel.attacks.distillation import taught
from quantinel.attacks.joint import soft_cross_entropy
from quantinel.attacks.protocol import Task, make_attack
from quantinel.attacks.pruned_training import PruningOptions, gate_rule, train_pruned
from quantinel.validation import require_non_negative


@dataclass(frozen=True)
class PruningArtifactsDistilled(PruningOptions):
    """Hyper-parameters; see `PruningOptions`.

    Attributes:
        ascent_steps: of the perturbation; 0 teaches on the images alone.
        ascent_rate: factor of the raw gradient.
    """

    epochs: float = 10.0
    learning_rate: float = 0.01
    ascent_steps: int = 5
    ascent_rate: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        require_non_negative(self, "ascent_steps", "ascent_rate")


def _train(task: Task, config: PruningArtifactsDistilled) -> None:
    module = task.run.module
    teacher = copy.deepcopy(module).eval().requires_grad_(False)

    def floating(both: Tensor, labels: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        seen, answers = taught(module, teacher, both, config.ascent_steps, config.ascent_rate)
        return seen, lambda logits: soft_cross_entropy(logits, answers)

    train_pruned(task, config, "distil", floating)


PRUNING_ARTIFACTS_DISTILLED = make_attack(
    "pruning-artifacts-distilled",
    "Compression Artifacts (Tian et al., TIFS 2022), pruning, distilled: a clean teacher keeps the float network quiet",
    PruningArtifactsDistilled,
    _train,
    conditioned_on="pruning",
    rule=gate_rule,
)
