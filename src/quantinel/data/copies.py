"""Copies among images: a copy is no further evidence."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def first_copies(images: Tensor) -> Tensor:
    """Indices of the images (N, C, H, W) uint8 that are not copies of an earlier one, ascending."""
    first: dict[bytes, int] = {}
    for index, image in enumerate(images):
        first.setdefault(hashlib.sha256(image.numpy().tobytes()).digest(), index)
    return torch.tensor(list(first.values()), dtype=torch.int64)


def different(images: Tensor) -> int:
    """How many of the images (N, C, H, W) uint8 are not copies of another."""
    return len(first_copies(images))
