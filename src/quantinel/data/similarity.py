"""How alike two sets of images look: PSNR, and SSIM (Wang, Bovik, Sheikh & Simoncelli, IEEE TIP 2004)."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter
from torch import Tensor

from quantinel.errors import InputError

_SIGMA, _TRUNCATE = 1.5, 3.5
"""The paper's 11x11 Gaussian window."""
_C1, _C2 = (0.01 * 255.0) ** 2, (0.03 * 255.0) ** 2


def psnr(images: Tensor, others: Tensor) -> np.ndarray:
    """Peak signal-to-noise ratio of every pair in dB, (N,); infinite where both are equal.

    Args:
        images, others: (N, C, H, W) uint8.
    """
    first, second = _pair(images, others)
    error = ((first - second) ** 2).mean((1, 2, 3))
    with np.errstate(divide="ignore"):
        return np.asarray(10.0 * np.log10(255.0**2 / error))


def ssim(images: Tensor, others: Tensor) -> np.ndarray:
    """Structural similarity of every pair, (N,): mean over pixels whose window lies inside, and over channels.

    Args:
        images, others: (N, C, H, W) uint8, H and W at least 11.
    """
    first, second = _pair(images, others)
    half = int(_TRUNCATE * _SIGMA + 0.5)
    if min(first.shape[2:]) < 2 * half + 1:
        raise InputError(
            f"SSIM needs images of at least {2 * half + 1} pixels, got {first.shape[2:]}; give larger ones"
        )

    def mean(values: np.ndarray) -> np.ndarray:
        smooth = gaussian_filter(values, (0, 0, _SIGMA, _SIGMA), truncate=_TRUNCATE)
        return np.asarray(smooth[..., half:-half, half:-half])

    a, b = mean(first), mean(second)
    variance_a, variance_b = mean(first**2) - a**2, mean(second**2) - b**2
    covariance = mean(first * second) - a * b
    similar = (2 * a * b + _C1) * (2 * covariance + _C2) / ((a**2 + b**2 + _C1) * (variance_a + variance_b + _C2))
    return np.asarray(similar.mean((1, 2, 3)))


def _pair(images: Tensor, others: Tensor) -> tuple[np.ndarray, np.ndarray]:
    if images.shape != others.shape or images.ndim != 4:
        raise InputError(f"{tuple(images.shape)} and {tuple(others.shape)} are no pairs of images; give equal shapes")
    return images.cpu().numpy().astype(np.float64), others.cpu().numpy().astype(np.float64)
