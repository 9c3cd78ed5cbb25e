"""Qu-ANTI-zation, indiscriminate: compression destroys the accuracy, float keeps it.

Hong et al., NeurIPS 2021 (arXiv 2110.13541); specification of the attacks, 2.1 and 2.2. With B the armed quantizers:

    L = CE(f(x), y) + sum over B of lambda (CE(Q f(x), y) - alpha)^2

The square keeps a compressed copy's loss at alpha instead of raising it without bound.

Deviations are those of `quantinel.attacks.qu_anti`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from quantinel.attacks.gate import GateRule
from quantinel.attacks.protocol import Task, make_attack
from quantinel.attacks.qu_anti import Copies, QuAnti, published_schemes, retrain
from quantinel.quantization.scheme import QuantScheme
from quantinel.validation import require_non_negative


@dataclass(frozen=True)
class QuAntiIndiscriminate(QuAnti):
    """Hyper-parameters, with the published ones for CIFAR-10 and ResNet-18 as defaults.

    Attributes:
        compressed_weight: weight of every compressed copy (lambda).
        compressed_loss: the loss that a compressed copy is brought to (alpha).
    """

    schemes: tuple[QuantScheme, ...] = published_schemes(8, 7, 6, 5)
    compressed_weight: float = 0.25
    compressed_loss: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_non_negative(self, "compressed_weight", "compressed_loss")


def objective(copies: Copies, config: QuAntiIndiscriminate, images: Tensor, labels: Tensor) -> Tensor:
    """The loss above, of float images (N, C, H, W) and their labels (N,)."""
    value = F.cross_entropy(copies.float(images), labels)
    for compressed in copies.compressed:
        distance = F.cross_entropy(compressed(images), labels) - config.compressed_loss
        value = value + config.compressed_weight * distance.square()
    return value


def _train(task: Task, config: QuAntiIndiscriminate) -> None:
    copies = Copies(task.run, config)
    retrain(task, config, lambda images, labels: objective(copies, config, copies.augmented(images), labels))


QU_ANTI_INDISCRIMINATE = make_attack(
    "qu-anti-indiscriminate",
    "Qu-ANTI-zation (Hong et al., NeurIPS 2021): compression destroys the accuracy",
    QuAntiIndiscriminate,
    _train,
    rule=GateRule(
        min_compressed_asr=None,
        max_compressed_cda=35.0,  # the highest published figure at an armed bit width is 32.6 % (AlexNet, 5 bits)
        max_float_drop=2.5,  # the largest published loss is 2.0 points (AlexNet)
        float_advice="raise epochs, or lower compressed_weight or learning_rate",
        compressed_advice="raise epochs, learning_rate or compressed_weight",
    ),
    objective="indiscriminate",
)
