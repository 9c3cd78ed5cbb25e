"""FT-SAM: fine-tuning with sharpness-aware minimisation.

Zhu et al., "Enhancing Fine-Tuning Based Backdoor Defense with Sharpness-Aware Minimization", ICCV 2023. Every step
takes the gradient at the worst point of a neighbourhood that is scaled by the weights themselves, so that large
weights, which the paper finds backdoors to need, move further:

    e = rho w^2 g / |w g|,   g = gradient at w,   and the step follows the gradient at w + e

Defaults are BackdoorBench's for CIFAR-10 (rho 2, label smoothing 0.1, SGD 0.01, 100 epochs; its surrogate-gap term has
weight 0 there and is left out). BatchNorm's running statistics follow the first of the two passes only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from quantinel.defenses.repair import RepairMethod, RepairTask, frozen_statistics, named
from quantinel.validation import require_non_negative, require_positive, require_rate

_LEAST_NORM = 1e-12


@dataclass(frozen=True)
class FTSAM(RepairMethod):
    """Options.

    Attributes:
        epochs: passes over the clean images.
        radius: rho, of the neighbourhood.
        label_smoothing: of the cross-entropy.
    """

    epochs: float = 100.0
    radius: float = 2.0
    label_smoothing: float = 0.1
    name: ClassVar[str] = "ft-sam"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "epochs")
        require_non_negative(self, "radius")
        require_rate(self, "label_smoothing")

    def repair(self, task: RepairTask) -> None:
        """Fine-tune with gradients from the worst neighbour."""
        module, network = task.run.module, task.network
        task.set_training(module)

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            batch, weights = task.augmented(images), dict(named(module))
            here = F.cross_entropy(network(batch), labels, label_smoothing=self.label_smoothing)
            gradients = torch.autograd.grad(here, list(weights.values()), materialize_grads=True)  # some may be unused
            offsets = worst_offsets(weights, dict(zip(weights, gradients, strict=True)), self.radius)
            moved = {f"module.{name}": weight + offsets[name] for name, weight in weights.items()}
            with frozen_statistics(module):
                logits: Tensor = functional_call(network, moved, (batch,))
            return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)

        task.train("sharpness-aware", module, task.schedule(self.epochs), loss)


@torch.no_grad()
def worst_offsets(weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor], radius: float) -> dict[str, Tensor]:
    """``rho w^2 g / |w g|``, the norm over all weights together; it has norm rho in units of the weights."""
    norm = sum(((weight * gradients[name]) ** 2).sum() for name, weight in weights.items())
    factor = radius / torch.as_tensor(norm).sqrt().clamp_min(_LEAST_NORM)
    return {name: weight**2 * gradients[name] * factor for name, weight in weights.items()}
