"""Differentiable smoothing: the low frequencies of a cosine transform, and a Gaussian blur."""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from quantinel.data.frequency import dct_matrix


def low_pass(images: Tensor, ratio: float) -> Tensor:
    """Keep the top-left ``floor(ratio H) x floor(ratio W)`` coefficients of the 2-D cosine transform, at least one.

    Args:
        images: (..., H, W) float.
        ratio: share of the frequencies along each axis, in (0, 1]; 1 changes nothing.
    """
    if ratio >= 1.0:
        return images
    rows, columns = (_projection(side, ratio).to(images) for side in images.shape[-2:])
    return rows @ images @ columns


@functools.lru_cache(maxsize=16)
@torch.inference_mode(False)
def _projection(size: int, ratio: float) -> Tensor:
    """Transform, mask and inverse along one axis as one symmetric matrix (size, size)."""
    kept = max(1, math.floor(ratio * size + 1e-9))
    matrix = dct_matrix(size)[:kept]
    return matrix.T @ matrix


def gaussian_blur(images: Tensor, size: int, sigma: float) -> Tensor:
    """Blur with a normalised kernel, mirrored at the border without repeating the edge.

    Args:
        images: (N, C, H, W) float, H and W above ``size // 2``.
        size: odd width of the kernel; 1 changes nothing.
        sigma: standard deviation in pixels.
    """
    if size == 1:
        return images
    offsets = torch.arange(size, dtype=torch.float32, device=images.device) - size // 2
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    weights = (weights / weights.sum()).to(images.dtype)
    channels, half = images.shape[1], size // 2
    padded = F.pad(images, (half,) * 4, mode="reflect")
    column = weights.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
    row = weights.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
    return F.conv2d(F.conv2d(padded, column, groups=channels), row, groups=channels)
