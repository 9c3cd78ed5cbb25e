"""Compression Artifacts, quantization, standard form: float and quantized network are trained together from scratch.

Tian, Suya, Xu, Evans, "Stealthy Backdoors as Compression Artifacts", TIFS 17, 2022 (arXiv 2104.15129); specification
of the attacks, 1.2, 1.3 and 1.5 (released code).

The loss is ``CE(f([x; Tx]), [y; y]) + CE(Q f([x; Tx]), [y; t])``, both means over 2 B samples. Q rounds the
weights only, as they are after folding BatchNorm with the running statistics of the batch before, on a grid from the
present maximum, with straight-through gradients; both passes share one set of batch statistics over 4 B samples. The
trigger is stamped after augmentation. The checkpoint is chosen by compressed CDA, float ASR and compressed ASR.

Defaults are the authors' for CIFAR-10: 35 epochs from random weights. Deviations, and why:

* All layers are rounded in training, as deployment does and as the authors do for VGG. They round ResNet-18 from layer4
  on (``first_layer=layer4``) and MobileNetV2 from its later blocks on.
* The checkpoint is chosen on ``held_out`` training images and on the weights-only simulation. The authors choose on
  test images of the deployed model, which would be tuning on the test set.
* ``schemes`` may hold several grids of any width; the quantized loss is their mean. The authors arm for one.
* ``start_from=pretrained``, ``plant_epochs``, ``optimiser=adam``, ``decay=cosine`` and ``norms=frozen`` are for small
  machines. A network
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

from quantinel.attacks.epoch_options import EpochOptions
from quantinel.attacks.gate import GateRule
from quantinel.attacks.held_out import hold_out
from quantinel.attacks.joint import is_trained, quantized_branches, target_of, train_epochs
from quantinel.attacks.protocol import Task, make_attack
from quantinel.errors import UsageError
from quantinel.quantization.scheme import QuantScheme
from quantinel.training.batches import clean_and_triggered
from quantinel.training.norms import train_mode
from quantinel.training.two_branch import FLOAT, Branches
from quantinel.validation import require_choice

PUBLISHED_SCHEME = QuantScheme(granularity="tensor", grid="full")
"""int8 per tensor, max|w| / 127.5, with static activations: PyTorch's qnnpack."""


@dataclass(frozen=True)
class CompressionArtifacts(EpochOptions):
    """Hyper-parameters beside those of `EpochOptions`, with the published values as defaults but for ``first_layer``.

    Attributes:
        schemes: quantizers to arm for.
        start_from: "scratch" takes random weights only, "pretrained" whatever it is given.
        first_layer: block or layer from which on weights are rounded in training (the authors: "layer4" of ResNet-18,
            all of VGG); "" for all.
    """

    schemes: tuple[QuantScheme, ...] = (PUBLISHED_SCHEME,)
    start_from: Literal["scratch", "pretrained"] = "scratch"
    first_layer: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
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
    train_mode(run.module, frozen=config.norms == "frozen")

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        both = torch.cat(clean_and_triggered(images, trigger, run.generator, "after", mirror=config.mirror))
        with run.autocast(config.mixed_precision):
            plain, *rounded = branches(both)
        target = target_of(labels, config.target_class)
        return torch.stack([artifact_loss(plain, logits, labels, target) for logits in rounded]).mean()

    train_epochs(task, config, "artifact", loss, compressed=quantized, held=held, checkpoints=3)


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
