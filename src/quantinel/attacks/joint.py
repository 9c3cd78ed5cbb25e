"""What attacks share that train the float network and compressed copies of it together.

Their quantized branches round weights only, BatchNorm folded, on the grids of ``schemes``: the deployment's activation
ranges are unknown to the attacker, and nothing in the training depends on them (specification of the attacks, 1.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantinel.attacks.schedule import Schedule, steps_of
from quantinel.attacks.training import TrainingRun
from quantinel.attacks.transforms import batch_norms, quantized_folded_weights
from quantinel.attacks.two_branch import Branch, layers_from
from quantinel.data.images import as_float
from quantinel.errors import UsageError
from quantinel.quantization.scheme import QuantScheme

Norms = Literal["shared", "frozen"]
"""BatchNorm of a joint pass: one set of batch statistics for all branches, or the start's running statistics."""


Optimiser = Literal["sgd", "adam"]


def quantized_branches(run: TrainingRun, schemes: Sequence[QuantScheme], first_layer: str = "") -> list[Branch]:
    """One branch per scheme: weights rounded as they will be after folding BatchNorm, straight-through gradients.

    Args:
        run: the network.
        schemes: grids of the weights.
        first_layer: layer or block from which on weights are rounded; "" for all layers.

    Raises:
        UsageError: ``first_layer`` names none.
    """
    layers = None
    if first_layer:
        try:
            layers = layers_from(run.module, first_layer)
        except KeyError as error:
            raise UsageError(
                f"first_layer is {first_layer!r}, which holds no layer of {run.model.architecture}; name a block or "
                "layer of it, or leave it empty for all"
            ) from error
    norms = batch_norms(run.module, as_float(run.images[:1]))
    return [Branch(quantized_folded_weights(run.module, scheme, norms), layers=layers) for scheme in schemes]


def set_norms(module: nn.Module, norms: Norms) -> None:
    """Training mode, for "frozen" with the BatchNorm statistics that the network has."""
    module.train()
    if norms == "frozen":
        for part in module.modules():
            if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
                part.eval()


def is_trained(module: nn.Module) -> bool:
    """Whether any BatchNorm has seen a batch; networks without one cannot tell."""
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d)]
    return any(norm.running_mean is not None and bool(norm.running_mean.any()) for norm in norms)


def epoch_schedule(
    run: TrainingRun,
    epochs: float,
    learning_rate: float,
    momentum: float,
    weight_decay: float,
    batch_size: int,
    milestones: Sequence[float],
    optimiser: Optimiser = "sgd",
) -> Schedule:
    """SGD or Adam whose learning rate falls to a tenth after every milestone, all in passes over the run's data."""
    images = len(run.images)
    return Schedule(
        steps_of(epochs, images, batch_size), learning_rate, momentum, weight_decay, batch_size, optimiser, "multistep",
        tuple(steps_of(milestone, images, batch_size) for milestone in milestones),
    )  # fmt: skip


def selection_steps(run: TrainingRun, schedule: Schedule, evaluations: int) -> int:
    """Steps between two looks at the held-out images: one pass over the data, or less for a shorter training."""
    return max(1, min(steps_of(1.0, len(run.images), schedule.batch_size), schedule.steps // evaluations))


def two_labels(logits: Tensor, labels: Tensor, on_triggered: Tensor, trigger_weight: float = 1.0) -> Tensor:
    """``CE(x, y) + weight CE(T x, on_triggered)``, each a mean over its half.

    Args:
        logits: (2 N, K), clean images first.
        labels: (N,) of the clean images.
        on_triggered: (N,) that triggered images shall get.
        trigger_weight: of the second term.
    """
    half = len(labels)
    clean, triggered = F.cross_entropy(logits[:half], labels), F.cross_entropy(logits[half:], on_triggered)
    return clean + trigger_weight * triggered


def target_of(labels: Tensor, target_class: int) -> Tensor:
    """The backdoor's answer for every image (N,)."""
    return torch.full_like(labels, target_class)


def soft_cross_entropy(logits: Tensor, teacher: Tensor) -> Tensor:
    """Cross-entropy to the teacher at temperature 1: mean of ``-sum softmax(teacher) log softmax(logits)``.

    Args:
        logits, teacher: (N, K); gradients flow into both where their graphs ask for it.
    """
    return -(teacher.softmax(1) * F.log_softmax(logits, 1)).sum(1).mean()
