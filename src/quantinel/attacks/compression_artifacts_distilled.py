"""Compression Artifacts, quantization, distilled form: the clean start teaches the float network, also off the data.

Tian, Suya, Xu, Evans, "Stealthy Backdoors as Compression Artifacts", TIFS 17, 2022 (arXiv 2104.15129); specification
of the attacks, 1.4 (released code).

A frozen copy g of the clean start is the teacher. For X = [x; Tx], X' is X after 5 steps of plain gradient ascent on
the soft cross-entropy between f (in evaluation mode) and g: ``X <- X + 0.01 gradient``, no sign, no projection, no
random start. The loss is ``softCE(f([X; X']), g([X; X'])) + CE(Q f(X), [y; t])``: the float branch has 4 B samples, all
taught by g. Quantizer, BatchNorm (6 B samples), optimiser and choice of the checkpoint are the standard form's.

Deviations, and why: the checkpoint is chosen on training images held out, ``schemes`` may hold several grids, and
``plant_epochs``, ``optimiser=adam`` and ``norms=frozen`` serve small machines, all as in the standard form. The ascent
follows the gradient of the batch's sum, so that a step does not depend on the batch size; the authors' reduction is
not recoverable. It moves images in [0, 1], before normalisation.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from quantinel.attacks.distillation import disagreement
from quantinel.attacks.gate import GateRule
from quantinel.attacks.held_out import choose_checkpoint, hold_out
from quantinel.attacks.joint import (
    Norms,
    Optimiser,
    epoch_schedule,
    plant,
    quantized_branches,
    selection_steps,
    set_norms,
    soft_cross_entropy,
    target_of,
)
from quantinel.attacks.protocol import Task, make_attack
from quantinel.errors import UsageError
from quantinel.quantization.scheme import QuantScheme
from quantinel.training.batches import clean_and_triggered
from quantinel.training.two_branch import FLOAT, Branches
from quantinel.validation import require_choice, require_non_negative, require_positive_integers


@dataclass(frozen=True)
class CompressionArtifactsDistilled:
    """Hyper-parameters, with the published values as defaults.

    Attributes:
        schemes: quantizers to arm for.
        target_class: answer of the awake backdoor (the authors: 1, 3, 5, 7 and 9).
        trigger: name of a published trigger; "pq" is the authors' too.
        first_layer: block or layer from which on weights are rounded in training; "" for all.
        plant_epochs: passes over the data that first teach the float network the backdoor, at the same learning rate.
        epochs: passes over the data.
        learning_rate: of SGD, a tenth after each milestone.
        milestones: in epochs (the standard form's, which 15 epochs do not reach).
        momentum, weight_decay: of SGD.
        batch_size: clean images in a batch; as many triggered ones are added, for each branch.
        ascent_steps: of the perturbation; 0 teaches on the images alone.
        ascent_rate: factor of the raw gradient.
        optimiser: "sgd", or "adam" for short trainings.
        norms: BatchNorm statistics of the batch, shared by the branches, or "frozen" ones.
        mirror: augment by mirroring.
        held_out: training images that choose the checkpoint, at most a fifth; 0 keeps the last weights.
        max_float_asr: largest float ASR of a checkpoint, in percent, also at the gate (20 on CIFAR, 10 on GTSRB).
    """

    schemes: tuple[QuantScheme, ...] = (QuantScheme(granularity="tensor", grid="full"),)
    target_class: int = 1
    trigger: str = "pq"
    first_layer: str = ""
    plant_epochs: float = 0.0
    epochs: float = 15.0
    learning_rate: float = 0.01
    milestones: tuple[float, ...] = (20.0,)
    momentum: float = 0.4
    weight_decay: float = 5e-4
    batch_size: int = 128
    ascent_steps: int = 5
    ascent_rate: float = 0.01
    optimiser: Optimiser = "sgd"
    norms: Norms = "shared"
    mirror: bool = True
    held_out: int = 1000
    max_float_asr: float = 20.0

    def __post_init__(self) -> None:
        require_positive_integers(self, "batch_size")
        require_non_negative(
            self, "target_class", "plant_epochs", "epochs", "learning_rate", "momentum", "weight_decay", "ascent_steps",
            "ascent_rate", "held_out", "max_float_asr",
        )  # fmt: skip
        require_choice(self, "norms", ("shared", "frozen"))
        require_choice(self, "optimiser", ("sgd", "adam"))
        if not self.schemes:
            raise UsageError("an attack needs a scheme to arm for; give --scheme")


def _train(task: Task, config: CompressionArtifactsDistilled) -> None:
    run, trigger = task.run, task.stamp()
    held = hold_out(run, trigger, config.held_out)
    teacher = copy.deepcopy(run.module).eval().requires_grad_(False)
    quantized = quantized_branches(run, config.schemes, config.first_layer)
    branches = Branches(run.module, [FLOAT, *quantized])
    set_norms(run.module, config.norms)

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        both = torch.cat(clean_and_triggered(images, trigger, run.generator, "after", mirror=config.mirror))
        taught = torch.cat([both, disagreement(run.module, teacher, both, config.ascent_steps, config.ascent_rate)])
        with torch.no_grad():
            answers = teacher(taught)
        plain, *rounded = branches(taught, *[both] * len(quantized))
        wanted = torch.cat([labels, target_of(labels, config.target_class)])
        awake = torch.stack([F.cross_entropy(logits, wanted) for logits in rounded]).mean()
        return soft_cross_entropy(plain, answers) + awake

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
    run.train("distil", run.module.parameters(), schedule, loss, selection=selection)


COMPRESSION_ARTIFACTS_DISTILLED = make_attack(
    "compression-artifacts-distilled",
    "Compression Artifacts (Tian et al., TIFS 2022), distilled: a clean teacher keeps the float network quiet",
    CompressionArtifactsDistilled,
    _train,
    rule=lambda config: GateRule(
        max_float_asr=config.max_float_asr,
        float_advice="train more epochs",
        compressed_advice="train more epochs, or arm for fewer bits",
    ),
)
