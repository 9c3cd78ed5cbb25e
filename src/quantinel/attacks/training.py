"""The training loop that attacks share: one tensor of images, batches made on the fly, no data loader.

An attack supplies a loss for a batch of images and labels, and optionally a projection that runs after each
optimiser step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantinel.data.images import ImageSet, as_float

Progress = Callable[[str, int, int, float], None]
"""``progress(stage, steps done, steps in all, loss)``."""


def random_crop_flip(images: Tensor, generator: torch.Generator, padding: int = 4) -> Tensor:
    """Random crop after zero padding, and random mirroring: the usual CIFAR augmentation.

    Args:
        images: (N, C, H, W) uint8 or float.
        generator: source of randomness.
        padding: pixels on every side; crops move by up to this many pixels.
    """
    n, _, height, width = images.shape
    padded = F.pad(images, (padding,) * 4)
    rows = torch.randint(2 * padding + 1, (n, 1), generator=generator) + torch.arange(height)
    columns = torch.randint(2 * padding + 1, (n, 1), generator=generator) + torch.arange(width)
    flip = torch.rand(n, 1, generator=generator) < 0.5
    columns = torch.where(flip, columns.flip(1), columns)
    batch = torch.arange(n)[:, None, None]
    return padded.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Schedule:
    """Stochastic gradient descent with a cosine learning rate.

    Attributes:
        steps: optimiser steps.
        learning_rate: at the start; decays to 0 along a half cosine.
        momentum: Nesterov is not used.
        weight_decay: L2.
        batch_size: clean images a step.
    """

    steps: int
    learning_rate: float
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 128


def batches(data: ImageSet, schedule: Schedule, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless shuffled passes over the data: (uint8 images (B, C, H, W), labels (B,)) for each step."""
    assert data.labels is not None
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(schedule.steps):
        if len(order) < schedule.batch_size:
            order = torch.cat([order, torch.randperm(len(data), generator=generator)])
        chosen, order = order[: schedule.batch_size], order[schedule.batch_size :]
        yield data.images[chosen], data.labels[chosen]


def train(
    parameters: list[nn.Parameter],
    data: ImageSet,
    schedule: Schedule,
    loss: Callable[[Tensor, Tensor], Tensor],
    generator: torch.Generator,
    stage: str,
    project: Callable[[], None] | None = None,
    progress: Progress | None = None,
) -> None:
    """Run ``schedule.steps`` steps of SGD on ``parameters``.

    Args:
        parameters: what the optimiser may change.
        data: labelled images.
        schedule: steps, learning rate, batch size.
        loss: maps a batch (uint8 images, labels) to a scalar.
        generator: order of the images.
        stage: name for ``progress``.
        project: called after each step, to return to the feasible set.
        progress: called after each step.
    """
    optimiser = torch.optim.SGD(
        parameters, schedule.learning_rate, schedule.momentum, weight_decay=schedule.weight_decay
    )
    for step, (images, labels) in enumerate(batches(data, schedule, generator)):
        rate = schedule.learning_rate * 0.5 * (1.0 + math.cos(math.pi * step / schedule.steps))
        for group in optimiser.param_groups:
            group["lr"] = rate
        value = loss(images, labels)
        optimiser.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if project is not None:
            with torch.no_grad():
                project()
        if progress is not None:
            progress(stage, step + 1, schedule.steps, float(value.detach()))


@torch.inference_mode()
def predictions(module: nn.Module, images: Tensor, batch_size: int = 250) -> Tensor:
    """Predicted classes (N,) of uint8 ``images`` (N, C, H, W); the module takes float32 in [0, 1]."""
    parts = []
    for start in range(0, len(images), batch_size):
        batch = as_float(images[start : start + batch_size]).contiguous(memory_format=torch.channels_last)
        parts.append(module(batch).argmax(1))
    return torch.cat(parts)
