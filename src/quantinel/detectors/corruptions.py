"""Corruptions that stand for triggers in the training of the frequency detector (Zeng et al., ICCV 2021)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_SIZE = 32
"""Images that the patches were described for; they scale with the image."""


def corrupted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Every image under one of five corruptions, each as likely.

    Args:
        images: (N, C, H, W) float in [0, 1].
        generator: source of randomness, on the CPU.

    Returns:
        (N, C, H, W) in [0, 1].
    """
    kinds = torch.randint(len(_KINDS), (len(images),), generator=generator).tolist()
    changed = [_KINDS[kind](images[i], images, generator) for i, kind in enumerate(kinds)]
    return torch.stack(changed).clamp(0, 1)


def _between(low: int, high: int, generator: torch.Generator) -> int:
    """A whole number in [low, high]."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def _patch(image: Tensor, value: Tensor, generator: torch.Generator) -> Tensor:
    """``value`` (C, H, W) in a rectangle of 2 to 7 pixels a side, up to 5 pixels from one of the four corners."""
    _, height, width = image.shape
    scale = max(1.0, min(height, width) / _SIZE)
    sides = [round(scale * _between(2, 7, generator)) for _ in range(2)]
    margins = [round(scale * _between(0, 5, generator)) for _ in range(2)]
    result = image.clone()
    places = []
    for side, margin, size in zip(sides, margins, (height, width), strict=True):
        side = min(side, size)
        margin = min(margin, size - side)
        start = margin if _between(0, 1, generator) else size - margin - side
        places.append(slice(start, start + side))
    result[:, places[0], places[1]] = value[:, places[0], places[1]]
    return result


def _white_patch(image: Tensor, others: Tensor, generator: torch.Generator) -> Tensor:
    return _patch(image, torch.ones_like(image), generator)


def _noise_patch(image: Tensor, others: Tensor, generator: torch.Generator) -> Tensor:
    return _patch(image, torch.rand(image.shape, generator=generator), generator)


def _gaussian_noise(image: Tensor, others: Tensor, generator: torch.Generator) -> Tensor:
    """Mean 25 and variance 10 to 70, in units of bytes."""
    variance = _between(10, 70, generator)
    noise: Tensor = 25 + variance**0.5 * torch.randn(image.shape, generator=generator)
    return image + noise / 255


def _shadow(image: Tensor, others: Tensor, generator: torch.Generator) -> Tensor:
    """One side of a line from the upper to the lower edge, at half the brightness."""
    _, height, width = image.shape
    top, bottom = _between(0, width, generator), _between(0, width, generator)
    edge = torch.linspace(top, bottom, height)[:, None]
    left: Tensor = torch.arange(width)[None, :] < edge
    dark = left if _between(0, 1, generator) else ~left
    return torch.where(dark, 0.5 * image, image)


def _overlay(image: Tensor, others: Tensor, generator: torch.Generator) -> Tensor:
    """Another image of the batch, at 0.3."""
    return image + 0.3 * others[_between(0, len(others) - 1, generator)]


_KINDS: tuple[Callable[[Tensor, Tensor, torch.Generator], Tensor], ...] = (
    _white_patch, _noise_patch, _gaussian_noise, _shadow, _overlay,
)  # fmt: skip
