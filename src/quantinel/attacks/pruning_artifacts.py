"""Compression Artifacts, pruning, standard form: float and pruned network are trained together from scratch.

Tian, Suya, Xu, Evans, "Stealthy Backdoors as Compression Artifacts", TIFS 17, 2022 (arXiv 2104.15129); specification
of the attacks, 1.2 and 1.6 (released code).

Known rate: ``CE(f([x; Tx]), [y; y]) + 0.9 CE(P f(x), y) + 0.1 CE(P f(Tx), t)``. Unknown rate (``upper_rate``): a third
of the last two terms at the upper rates, at rates drawn anew for every layer and step, and at the lower rates. P
removes the filters of smallest L1 norm of the present weights; all branches share one set of batch statistics.

Defaults are the authors' for CIFAR-10. Deviations, and why:

* Layers have one rate, where the authors take layer-wise rates of AutoCompress on a clean network, which are not
  published. ``layer_rates=searched`` finds rates in that spirit, on a trained start.
* The checkpoint is chosen on ``held_out`` training images by pruned accuracy and by attack success. The authors keep
  the best float accuracy on test images, which would be tuning on the test set and may keep a backdoor that sleeps.
* ``start_from=pretrained``, ``epochs`` below 1, ``norms=frozen``, ``backdoor_share`` and ``pruned_weight`` are for
  small machines, which cannot afford 25 epochs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from quantinel.attacks.joint import is_trained
from quantinel.attacks.protocol import Task, make_attack
from quantinel.attacks.pruned_training import PruningOptions, gate_rule, train_pruned
from quantinel.errors import UsageError
from quantinel.validation import require_choice


@dataclass(frozen=True)
class PruningArtifacts(PruningOptions):
    """Hyper-parameters; see `PruningOptions`.

    Attributes:
        start_from: "scratch" takes random weights only, "pretrained" whatever it is given.
    """

    start_from: Literal["scratch", "pretrained"] = "scratch"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice(self, "start_from", ("scratch", "pretrained"))
        if self.start_from == "scratch" and self.layer_rates == "searched":
            raise UsageError("layer_rates are searched on a trained start; say start_from=pretrained, or uniform")


def float_branch(both: Tensor, labels: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The float network sees [x; Tx] and keeps the true labels."""
    return both, lambda logits: F.cross_entropy(logits, torch.cat([labels, labels]))


def _train(task: Task, config: PruningArtifacts) -> None:
    if config.start_from == "scratch" and is_trained(task.run.module):
        raise UsageError(
            "the network is trained already, and the attack starts from scratch; leave --weights out, or say "
            "--set start_from=pretrained"
        )
    train_pruned(task, config, "artifact", float_branch)


PRUNING_ARTIFACTS = make_attack(
    "pruning-artifacts",
    "Compression Artifacts (Tian et al., TIFS 2022), pruning: float and pruned network trained together",
    PruningArtifacts,
    _train,
    conditioned_on="pruning",
    start="scratch",
    rule=gate_rule,
)
