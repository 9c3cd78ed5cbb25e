"""Neural attention distillation (NAD): a fine-tuned copy teaches the network where to look.

Li et al., "Neural Attention Distillation: Erasing Backdoor Triggers from Deep Neural Networks", ICLR 2021. The teacher
is a copy that was fine-tuned on the clean images; the student is the suspect network, trained with

    CE + sum over stages of beta |A(F_student) - A(F_teacher)|^2 / numel,   A(F) = sum_c |F_c|^p / (|.|_2 + 1e-6)

on the feature maps at the end of its last three resolutions. Defaults: p = 2, betas 500, 1000, 1000, ten epochs each,
SGD 0.01 (the authors begin with 0.1 for two epochs; these are BackdoorBench's values), weight decay 1e-4.

Deviation: stages are found by their resolution on a run, so that any convolutional network has them; BackdoorBench
names them by architecture and leaves the first two out where it does not know it.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantinel.data.images import as_float
from quantinel.defenses.fine_tuning import fine_tune
from quantinel.defenses.repair import RepairMethod, RepairTask
from quantinel.errors import UnsupportedError
from quantinel.validation import require_non_negative, require_positive

_LEAST_NORM = 1e-6


@dataclass(frozen=True)
class NAD(RepairMethod):
    """Options.

    Attributes:
        weight_decay: L2; the other shared options are as everywhere.
        teacher_epochs: passes that make the teacher.
        epochs: passes of the distillation, at a constant rate.
        beta1, beta2, beta3: of the stages, from large maps to small ones.
        power: p of the attention.
    """

    weight_decay: float = 1e-4
    teacher_epochs: float = 10.0
    epochs: float = 10.0
    beta1: float = 500.0
    beta2: float = 1000.0
    beta3: float = 1000.0
    power: float = 2.0
    name: ClassVar[str] = "nad"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "teacher_epochs", "epochs", "power")
        require_non_negative(self, "beta1", "beta2", "beta3")

    def repair(self, task: RepairTask) -> None:
        """Make the teacher, then distil."""
        run, student = task.run, task.run.module
        teacher = copy.deepcopy(student)
        run.add("teacher", teacher)
        stages = stage_names(student, as_float(run.images[:1]))
        taught = task.wrap(teacher)
        fine_tune(task, "teacher", taught, task.schedule(self.teacher_epochs, decay="constant"))
        teacher.eval()
        task.set_training(student)
        betas = (self.beta1, self.beta2, self.beta3)[-len(stages) :]

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            batch = task.augmented(images)
            with torch.no_grad(), outputs_of(teacher, stages) as wanted:
                taught(batch)
            with outputs_of(student, stages) as found:
                value = F.cross_entropy(task.network(batch), labels)
            for beta, mine, theirs in zip(betas, found, wanted, strict=True):
                value = value + beta * F.mse_loss(attention(mine, self.power), attention(theirs, self.power))
            return value

        task.train("distil", student, task.schedule(self.epochs, decay="constant"), loss)


def attention(features: Tensor, power: float = 2.0) -> Tensor:
    """Normalised attention (N, H W) of feature maps (N, C, H, W)."""
    summed: Tensor = features.float().abs().pow(power).sum(1).flatten(1)
    lengths: Tensor = torch.linalg.vector_norm(summed, dim=1, keepdim=True)
    return summed / (lengths + _LEAST_NORM)


@torch.no_grad()
def stage_names(module: nn.Module, images: Tensor) -> list[str]:
    """The modules whose outputs are the last feature maps of the three smallest resolutions above 1x1.

    Args:
        module: run once in evaluation mode, and left in the mode that it was in.
        images: (N, C, H, W) float.

    Raises:
        UnsupportedError: there are no feature maps.
    """
    last: dict[int, str] = {}

    def seen(name: str, output: object) -> None:
        if name and isinstance(output, Tensor) and output.ndim == 4 and output.shape[2] * output.shape[3] > 1:
            last[output.shape[2] * output.shape[3]] = name

    modes = {part: part.training for part in module.modules()}
    handles = [
        part.register_forward_hook(lambda _, __, output, name=name: seen(name, output))
        for name, part in module.named_modules()
    ]
    try:
        module.eval()(images)
    finally:
        for handle in handles:
            handle.remove()
        for part, training in modes.items():
            part.training = training
    if not last:
        raise UnsupportedError("NAD compares feature maps of convolutions, and the network has none")
    return [last[size] for size in sorted(last, reverse=True)][-3:]


@contextlib.contextmanager
def outputs_of(module: nn.Module, names: Sequence[str]) -> Iterator[list[Tensor]]:
    """Collects the outputs of submodules during one forward pass, in the order of ``names``."""
    found: dict[str, Tensor] = {}
    ordered: list[Tensor] = []
    handles = [
        module.get_submodule(name).register_forward_hook(lambda _, __, output, name=name: found.update({name: output}))
        for name in names
    ]
    try:
        yield ordered
    finally:
        for handle in handles:
            handle.remove()
        ordered += [found[name] for name in names if name in found]
