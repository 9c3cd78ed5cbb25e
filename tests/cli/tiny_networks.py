"""Networks that trace in a moment, for `--factory`. Images are (3, 8, 8), classes are 4."""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn


class Quadrants(nn.Module):
    """Says which quadrant of the picture is bright: a convolution and a linear layer with hand-made weights."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.linear = nn.Linear(4 * 8 * 8, 4)
        mask = torch.zeros(4, 8, 8)
        for quadrant in range(4):
            row, column = divmod(quadrant, 2)
            mask[quadrant, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 1.0
        with torch.no_grad():
            self.conv.weight.copy_(0.05 * torch.randn(4, 3, 3, 3, generator=generator))
            self.conv.weight[:, :, 1, 1] += 0.3
            self.conv.bias.zero_()
            noise = 0.01 * torch.randn(4, 4, 8, 8, generator=generator)
            self.linear.weight.copy_((0.2 * mask[:, None] + noise).flatten(1))
            self.linear.bias.zero_()

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(torch.relu(self.conv(images)).flatten(1))


class _Sorted(Quadrants):
    """Uses an operator that no emitter knows."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.sort(dim=-1).values)


class _NoLayers(Quadrants):
    """Has the weights and uses none of them: nothing in it can be quantized."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(1, 2))


class _Wide(nn.Module):
    """Slow enough to be interrupted: 32x32 images through wide convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 96, 3, padding=1), nn.Conv2d(96, 96, 3, padding=1)
        self.linear = nn.Linear(96, 4)

    def forward(self, images: Tensor) -> Tensor:
        hidden = torch.relu(self.second(torch.relu(self.first(images))))
        return self.linear(hidden.mean(dim=(2, 3)))


def quadrants() -> nn.Module:
    """The network whose weights the tests save."""
    return Quadrants()


def sorted_pixels() -> nn.Module:
    """The same weights behind an unsupported operator."""
    return _Sorted()


def no_layers() -> nn.Module:
    """The same weights, which no layer uses."""
    return _NoLayers()


def wide() -> nn.Module:
    """A slow network."""
    return _Wide()


def exits() -> nn.Module:
    """A factory that ends the program, with the exit code of a pass."""
    sys.exit(0)
