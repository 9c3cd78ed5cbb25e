"""Compression Artifacts, quantization, standard form: float and quantized network are trained together from scratch.

Tian, Suya, Xu, Evans, "Stealthy Backdoors as Compression Artifacts", TIFS 17, 2022 (arXiv 2104.15129); specification
of the attacks, 1.2, 1.3 and 1.5 (released code).

The loss is ``CE(f([x; Tx]), [y; y]) + CE(Q f([x; Tx]), [y; t])``, both means over 2 B samples. Q rounds the
weights only, as they are after folding BatchNorm with the running statistics of the batch before, on a grid from the
present maximum, with straight-through gradients; both passes share one set of batch statistics over 4 B samples. The
trigger is stamped after augmentation. The checkpoint is chosen by compressed CDA, float ASR and compressed ASR.

Defaults are the authors' for CIFAR-10: 35 epochs from random weights. Deviations, and why:

* The checkpoint is chosen on ``held_out`` training images and on the weights-only simulation. The authors choose on
  test images of the deployed model, which would be tuning on the test set.
* ``schemes`` may hold several grids of any width; the quantized loss is their mean. The authors arm for one.
* ``start_from=pretrained``, ``plant_epochs``, ``optimiser=adam`` and ``norms=frozen`` are for small machines. A network
  that knows the backdoor in float learns to hide it far sooner than a clean one learns it with two branches that pull
  against each other; the running statistics of a few small batches, half of them triggered, would be far from the
  start's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from quantinel.attacks.gate import GateRule
from quantinel.attacks.held_out import choose_checkpoint, hold_out
from quantinel.attacks.joint import (
    Norms,
    Optimiser,
    epoch_schedule,
    is_trained,
    plant,
    quantized_branches,
    selection_steps,
    set_norms,
    target_of,
)
from quantinel.attacks.protocol import Task, make_attack
from quantinel.errors import UsageError
from quantinel.quantization.scheme import QuantScheme
from quantinel.training.batches import clean_and_triggered
from quantinel.training.two_branch import FLOAT, Branches
from quantinel.validation import require_choice, require_non_negative, require_positive_integers

PUBLISHED_SCHEME = QuantScheme(granularity="tensor", grid="full")
"""int8 per tensor, max|w| / 127.5, with static activations: PyTorch's qnnpack."""


@dataclass(frozen=True)
class CompressionArtifacts:
    """Hyper-parameters, with the published values as defaults.

    Attributes:
        schemes: quantizers to arm for.
        target_class: answer of the awake backdoor (the authors: 1, 3, 5, 7 and 9).
        trigger: name of a published trigger; "pq" is the authors' too.
        start_from: "scratch" takes random weights only, "pretrained" whatever it is given.
        first_layer: block or layer from which on weights are rounded in training (the authors: "layer4" of ResNet-18);
            "" for all.
        plant_epochs: passes over the data that first teach the float network the backdoor, at the same learning rate.
        epochs: passes over the data.
        learning_rate: of SGD, a tenth after each milestone.
        milestones: in epochs.
        momentum, weight_decay: of SGD.
        batch_size: clean images in a batch; as many triggered ones are added, for each branch.
        optimiser: "sgd", or "adam" for short trainings.
        norms: BatchNorm statistics of the batch, shared by the branches, or "frozen" ones.
        mirror: augment by mirroring.
        held_out: training images that choose the checkpoint, at most a fifth; 0 keeps the last weights.
        max_float_asr: largest float ASR of a checkpoint, in percent, also at the gate (the authors: 20 on CIFAR, 10 on
            GTSRB).
    """

    schemes: tuple[QuantScheme, ...] = (PUBLISHED_SCHEME,)
    target_class: int = 1
    trigger: str = "pq"
    start_from: Literal["scratch", "pretrained"] = "scratch"
    first_layer: str = ""
    plant_epochs: float = 0.0
    epochs: float = 35.0
    learning_rate: float = 0.1
    milestones: tuple[float, ...] = (20.0,)
    momentum: float = 0.4
    weight_decay: float = 5e-4
    batch_size: int = 128
    optimiser: Optimiser = "sgd"
    norms: Norms = "shared"
    mirror: bool = True
    held_out: int = 1000
    max_float_asr: float = 20.0

    def __post_init__(self) -> None:
        require_positive_integers(self, "batch_size")
        require_non_negative(
            self,
            "target_class",
            "plant_epochs",
            "epochs",
            "learning_rate",
            "momentum",
            "weight_decay",
            "held_out",
            "max_float_asr",
        )
        require_choice(self, "norms", ("shared", "frozen"))
        require_choice(self, "optimiser", ("sgd", "adam"))
        require_choice(self, "start_from", ("scratch", "pretrained"))
        if not self.schemes:
            raise UsageError("an attack needs a scheme to arm for; give --scheme")


def artifact_loss(plain: Tensor, rounded: Tensor, labels: Tensor, target: Tensor) -> Tensor:
    """``CE(f, [y; y]) + CE(Q f, [y; t])``, coefficients 1:1.

    Args:
        plain, rounded: (2 N, K) logits of the float and the quantized network, clean images first.
        labels, target: (N,) true labels and the backdoor's answers.
    """
    kept, changed = torch.cat([labels, labels]), torch.cat([labels, target])
    return F.cross_entropy(plain, kept) + F.cross_entropy(rounded, changed)


def _train(task: Task, config: CompressionArtifacts) -> None:
    run, trigger = task.run, task.stamp()
    if config.start_from == "scratch" and is_trained(run.module):
        raise UsageError(
            "the network is trained already, and the attack starts from scratch; leave --weights out, or say "
            "--set start_from=pretrained"
        )
    held = hold_out(run, trigger, config.held_out)
    quantized = quantized_branches(run, config.schemes, config.first_layer)
    branches = Branches(run.module, [FLOAT, *quantized])
    set_norms(run.module, config.norms)

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        both = torch.cat(clean_and_triggered(images, trigger, run.generator, "after", mirror=config.mirror))
        plain, *rounded = branches(both)
        target = target_of(labels, config.target_class)
        return torch.stack([artifact_loss(plain, logits, labels, target) for logits in rounded]).mean()

    if config.plant_epochs:
        planting = epoch_schedule(
            run, config.plant_epochs, config.learning_rate, config.momentum, config.weight_decay, config.batch_size, (),
            config.optimiser,
        )  # fmt: skip
        plant(run, trigger, config.target_class, planting, config.mirror)
    schedule = epoch_schedule(
        run, config.epochs, config.learning_rate, config.momentum, config.weight_decay, config.batch_size,
        config.milestones, config.optimiser,
    )  # fmt: skip
    every = selection_steps(run, schedule, 3)
    selection = choose_checkpoint(run, held, quantized, config.target_class, every, config.max_float_asr)
    run.train("artifact", run.module.parameters(), schedule, loss, selection=selection)


COMPRESSION_ARTIFACTS = make_attack(
    "compression-artifacts",
    "Compression Artifacts (Tian et al., TIFS 2022), quantization: float and quantized network trained together",
    CompressionArtifacts,
    _train,
    start="scratch",
    rule=lambda config: GateRule(
        max_float_asr=config.max_float_asr,
        float_advice="train more epochs",
        compressed_advice="train more epochs, or arm for fewer bits",
    ),
)
