"""Fine-pruning (FP): remove what clean images do not use, then fine-tune.

Liu, Dolan-Gavitt & Garg, "Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural Networks", RAID 2018. The
features that the last linear layer reads are zeroed in the order of their mean activation on clean images, in steps of
1 % of them, while the accuracy stays above 90 % of what it was; the rest is fine-tuned. Defaults are BackdoorBench's.

Deviations. The paper prunes channels of the last convolution; as BackdoorBench does, this prunes the inputs of the last
linear layer, which for networks with global pooling are those channels. They are removed by zero columns of that layer,
so that the architecture stays. BackdoorBench's stopping rule looks at test images; this one looks at the clean images
of the repair, before any of them was trained on, with the last layer in float.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from quantinel.defenses.fine_tuning import fine_tune
from quantinel.defenses.repair import RepairMethod, RepairTask
from quantinel.errors import UsageError
from quantinel.model.penultimate import last_linear, penultimate_features
from quantinel.validation import require_positive, require_rate


@dataclass(frozen=True)
class FinePruning(RepairMethod):
    """Options.

    Attributes:
        epochs: passes of the fine-tuning.
        accuracy_drop: relative loss of accuracy that stops the pruning.
        step: share of the features that one step removes, in (0, 1).
    """

    epochs: float = 100.0
    accuracy_drop: float = 0.1
    step: float = 0.01
    name: ClassVar[str] = "fp"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "epochs")
        require_rate(self, "accuracy_drop", "step")
        if not self.step:
            raise UsageError("step is 0; give a number above 0 and below 1")

    def repair(self, task: RepairTask) -> None:
        """Prune and fine-tune."""
        name, head = last_linear(task.run.module)
        task.run.module.eval()
        features = penultimate_features(task.network, head, task.run.images)
        removed = idle_features(features, head, task.run.labels, self.accuracy_drop, self.step)
        where = torch.zeros_like(head.weight, dtype=torch.bool)
        where[:, removed] = True
        task.hold_zeros(f"{name}.weight", where)
        with torch.no_grad():
            task.zero_held(task.run.module.named_parameters())
        fine_tune(task, "fine-tune", task.network, task.schedule(self.epochs))


@torch.no_grad()
def idle_features(features: Tensor, head: nn.Linear, labels: Tensor, accuracy_drop: float, step: float) -> Tensor:
    """Indices of the least active features, as many as accuracy allows.

    Args:
        features: (N, D) on clean images.
        head: reads them.
        labels: (N,).
        accuracy_drop: relative loss that ends the search.
        step: share of D that every trial removes more.
    """

    def accuracy() -> float:
        return float((head(features * mask).argmax(1) == labels).float().mean())

    order = features.mean(0).argsort(stable=True)
    mask = torch.ones_like(features[0])
    least, removed = accuracy() * (1 - accuracy_drop), 0
    size = max(1, round(step * len(order)))
    for count in range(size, len(order), size):
        mask[order[:count]] = 0.0
        if accuracy() <= least:
            break
        removed = count
    return order[:removed]
