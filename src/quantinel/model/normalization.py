"""Images in [0, 1] in, whatever the network was trained on inside."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from quantinel.errors import UsageError


class Normalized(nn.Module):
    """``inner((images - mean) / std)``, per channel.

    Args:
        inner: takes normalised images (N, C, H, W).
        mean, std: C numbers each, for images in [0, 1]; ``std`` is positive.

    Raises:
        UsageError: different lengths, or a number that is not finite or not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, inner: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not mean or not all(math.isfinite(value) for value in (*mean, *std)):
            raise UsageError(
                f"mean and std need one finite number a channel, got {list(mean)} and {list(std)}; correct them"
            )
        if min(std) <= 0:
            raise UsageError(f"std must be positive, got {list(std)}; correct it")
        self.inner = inner
        self.register_buffer("mean", torch.tensor(list(mean), dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(list(std), dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Output of ``inner`` for images (N, C, H, W) in [0, 1]."""
        result: Tensor = self.inner((images - self.mean) / self.std)
        return result
