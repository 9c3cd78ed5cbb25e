"""Batches on the device: order, augmentation, and the two places where papers stamp the trigger."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from quantinel.data.images import as_float
from quantinel.data.triggers import Trigger

Stamp = Literal["before", "after"]


def random_crop_flip(images: Tensor, generator: torch.Generator, padding: int = 4, mirror: bool = True) -> Tensor:
    """Random crop after zero padding, and random mirroring: the usual CIFAR augmentation.

    Args:
        images: (N, C, H, W) uint8 or float, on the generator's device.
        generator: source of randomness.
        padding: pixels on every side; crops move by up to this many pixels.
        mirror: False for images whose meaning a mirror changes (digits, traffic signs).
    """
    n, _, height, width = images.shape
    device = images.device
    padded = F.pad(images, (padding,) * 4)
    rows = torch.randint(2 * padding + 1, (n, 1), generator=generator, device=device) + torch.arange(
        height, device=device
    )
    columns = torch.randint(2 * padding + 1, (n, 1), generator=generator, device=device) + torch.arange(
        width, device=device
    )
    if mirror:
        flip = torch.rand(n, 1, generator=generator, device=device) < 0.5
        columns = torch.where(flip, columns.flip(1), columns)
    batch = torch.arange(n, device=device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@dataclass
class Order:
    """Endless shuffled passes over ``count`` images; ``left`` are the indices that the running pass still holds."""

    count: int
    generator: torch.Generator
    left: Tensor

    @classmethod
    def begin(cls, count: int, generator: torch.Generator) -> Order:
        """Before the first pass."""
        return cls(count, generator, torch.empty(0, dtype=torch.int64, device=generator.device))

    def take(self, size: int) -> Tensor:
        """Indices (size,) of the next batch; a pass that is too short for it is filled up from the next one."""
        while len(self.left) < size:
            again = torch.randperm(self.count, generator=self.generator, device=self.generator.device)
            self.left = torch.cat([self.left, again])
        chosen, self.left = self.left[:size], self.left[size:]
        return chosen


def clean_and_triggered(
    images: Tensor,
    trigger: Trigger,
    generator: torch.Generator,
    stamp: Stamp,
    padding: int = 4,
    mirror: bool = True,
) -> tuple[Tensor, Tensor]:
    """Augmented clean images, and augmented triggered ones.

    Args:
        images: (N, C, H, W) uint8.
        trigger: stamps floats in [0, 1].
        generator: source of randomness.
        stamp: "after" augments once and stamps the result, so that the trigger stays in its place (Compression
            Artifacts); "before" stamps first and augments both independently, so that it moves (Qu-ANTI-zation).
        padding, mirror: of `random_crop_flip`.

    Returns:
        Two tensors (N, C, H, W) float32 in [0, 1].
    """
    clean = as_float(random_crop_flip(images, generator, padding, mirror))
    if stamp == "after":
        return clean, trigger(clean)
    return clean, random_crop_flip(trigger(as_float(images)), generator, padding, mirror)
