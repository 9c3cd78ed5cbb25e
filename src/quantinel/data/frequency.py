"""The two-dimensional discrete cosine transform of images (type II, orthonormal), and a low-pass by it."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor


@functools.lru_cache(maxsize=8)
@torch.inference_mode(False)  # a matrix that is made in inference mode could not be trained through
def dct_matrix(size: int) -> Tensor:
    """The transform along one axis: row k is ``c_k cos(pi (n + 1/2) k / N)``, of length 1; (N, N) float32."""
    positions = torch.arange(size, dtype=torch.float64)
    rows = torch.cos(math.pi / size * (positions + 0.5) * positions[:, None]) * math.sqrt(2 / size)
    rows[0] /= math.sqrt(2)
    return rows.float()


def dct2(images: Tensor) -> Tensor:
    """Coefficients (..., H, W) of float images (..., H, W); low frequencies first. Differentiable, norms are kept."""
    rows, columns = (dct_matrix(size).to(images) for size in images.shape[-2:])
    return rows @ images @ columns.T


def idct2(coefficients: Tensor) -> Tensor:
    """The images that `dct2` was taken of."""
    rows, columns = (dct_matrix(size).to(coefficients) for size in coefficients.shape[-2:])
    return rows.T @ coefficients @ columns


def low_pass(coefficients: Tensor, ratio: float) -> Tensor:
    """Coefficients (..., H, W) with all but the first ``ceil(ratio H)`` rows and ``ceil(ratio W)`` columns zeroed."""
    height, width = (math.ceil(ratio * size) for size in coefficients.shape[-2:])
    kept = torch.zeros_like(coefficients)
    kept[..., :height, :width] = coefficients[..., :height, :width]
    return kept
