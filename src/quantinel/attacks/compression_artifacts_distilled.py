"""Compression Artifacts, quantization, distilled form: the clean start teaches the float network, also off the data.

Tian, Suya, Xu, Evans, "Stealthy Backdoors as Compression Artifacts", TIFS 17, 2022 (arXiv 2104.15129); specification
of the attacks, 1.4 (released code).

A frozen copy g of the clean start is the teacher. For X = [x; Tx], X' is X after 5 steps of plain gradient ascent on
the soft cross-entropy between f (in evaluation mode) and g: ``X <- X + 0.01 gradient``, no sign, no projection, no
random start. The loss is ``softCE(f([X; X']), g([X; X'])) + CE(Q f(X), [y; t])``: the float branch has 4 B samples, all
taught by g. Quantizer, BatchNorm (6 B samples), optimiser and choice of the checkpoint are the standard form's.

Deviations, and why: all layers are rounded in training, the checkpoint is chosen on training images held out,
``schemes`` may hold several grids, and ``plant_epochs``, ``optimiser=adam``, ``decay=cosine`` and ``norms=frozen``
serve small machines, all as in the standard form. The ascent follows the gradient of the batch's sum, so that a step
does not depend on the batch size; the authors' reduction is not recoverable. It moves images in [0, 1], before
normalisation.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from quantinel.attacks.compression_artifacts import PUBLISHED_SCHEME
from quantinel.attacks.distillation import taught
from quantinel.attacks.epoch_options import EpochOptions
from quantinel.attacks.gate import GateRule
from quantinel.attacks.held_out import hold_out
from quantinel.attacks.joint import quantized_branches, soft_cross_entropy, target_of, train_epochs
from quantinel.attacks.protocol import Task, make_attack
from quantinel.errors import UsageError
from quantinel.quantization.scheme import QuantScheme
from quantinel.training.batches import clean_and_triggered
from quantinel.training.norms import train_mode
from quantinel.training.two_branch import FLOAT, Branches
from quantinel.validation import require_non_negative


@dataclass(frozen=True)
class CompressionArtifactsDistilled(EpochOptions):
    """Hyper-parameters beside those of `EpochOptions`, with the published values as defaults but for ``first_layer``.

    The milestone is the standard form's, which 15 epochs do not reach.

    Attributes:
        schemes: quantizers to arm for.
        first_layer: block or layer from which on weights are rounded in training (the authors: as in the standard
            form); "" for all.
        ascent_steps: of the perturbation; 0 teaches on the images alone.
        ascent_rate: factor of the raw gradient.
    """

    epochs: float = 15.0
    learning_rate: float = 0.01
    schemes: tuple[QuantScheme, ...] = (PUBLISHED_SCHEME,)
    first_layer: str = ""
    ascent_steps: int = 5
    ascent_rate: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        require_non_negative(self, "ascent_steps", "ascent_rate")
        if not self.schemes:
            raise UsageError("an attack needs a scheme to arm for; give --scheme")


def _train(task: Task, config: CompressionArtifactsDistilled) -> None:
    run, trigger = task.run, task.stamp()
    held = hold_out(run, trigger, config.held_out)
    teacher = copy.deepcopy(run.module).eval().requires_grad_(False)
    quantized = quantized_branches(run, config.schemes, config.first_layer)
    branches = Branches(run.module, [FLOAT, *quantized])
    train_mode(run.module, frozen=config.norms == "frozen")

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        both = torch.cat(clean_and_triggered(images, trigger, run.generator, "after", mirror=config.mirror))
        with run.autocast(config.mixed_precision):
            seen, answers = taught(run.module, teacher, both, config.ascent_steps, config.ascent_rate)
            plain, *rounded = branches(seen, *[both] * len(quantized))
        wanted = torch.cat([labels, target_of(labels, config.target_class)])
        awake = torch.stack([F.cross_entropy(logits, wanted) for logits in rounded]).mean()
        return soft_cross_entropy(plain, answers) + awake

    train_epochs(task, config, "distil", loss, compressed=quantized, held=held, checkpoints=3)


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
