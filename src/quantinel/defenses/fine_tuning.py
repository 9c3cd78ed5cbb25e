"""Fine-tuning (FT): cross-entropy on clean images, all weights. The repair that every paper compares with.

Defaults are BackdoorBench's (100 epochs of SGD, 0.01, half cosine). Liu et al., "Fine-Pruning", RAID 2018, showed that
on ordinary backdoors it is often undone by the backdoor's weights being idle on clean images; Li et al., ICML 2024,
report the same for the PQ backdoor's quantized model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from quantinel.defenses.repair import Network, RepairMethod, RepairTask
from quantinel.training.schedule import Schedule
from quantinel.validation import require_positive


@dataclass(frozen=True)
class FineTuning(RepairMethod):
    """Options.

    Attributes:
        epochs: passes over the clean images.
    """

    epochs: float = 100.0
    name: ClassVar[str] = "ft"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "epochs")

    def repair(self, task: RepairTask) -> None:
        """Train on."""
        fine_tune(task, "fine-tune", task.network, task.schedule(self.epochs))


def fine_tune(task: RepairTask, phase: str, network: Network, schedule: Schedule) -> None:
    """A phase of cross-entropy on augmented clean images over all weights of ``network.module``."""
    task.set_training(network.module)

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(network(task.augmented(images)), labels)

    task.train(phase, network.module, schedule, loss)
