from __future__ import annotations

import numpy as np
import pytest
import torch

from quantinel.data.similarity import psnr, ssim
from quantinel.errors import InputError


def noise(seed: int, side: int = 16) -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, side, side), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_equal_images() -> None:
    assert np.isinf(psnr(noise(0), noise(0))).all()
    np.testing.assert_allclose(ssim(noise(0), noise(0)), 1.0)


def test_a_shift_of_brightness() -> None:
    dark, bright = (torch.full((1, 1, 12, 12), value, dtype=torch.uint8) for value in (100, 110))
    np.testing.assert_allclose(psnr(dark, bright), 10 * np.log10(255**2 / 100))
    c1 = (0.01 * 255) ** 2
    np.testing.assert_allclose(ssim(dark, bright), (2 * 100 * 110 + c1) / (100**2 + 110**2 + c1))


def test_ssim_by_hand_at_the_only_pixel_with_a_whole_window() -> None:
    first, second = noise(1, 11)[:1, :1], noise(2, 11)[:1, :1]
    offsets = np.arange(-5, 6)
    window = np.exp(-0.5 * (offsets / 1.5) ** 2)
    window = np.outer(window, window) / window.sum() ** 2
    a, b = (image[0, 0].numpy().astype(float) for image in (first, second))
    mean_a, mean_b = (window * a).sum(), (window * b).sum()
    variance_a, variance_b = (window * a * a).sum() - mean_a**2, (window * b * b).sum() - mean_b**2
    covariance = (window * a * b).sum() - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    expected = ((2 * mean_a * mean_b + c1) * (2 * covariance + c2)) / (
        (mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2)
    )
    np.testing.assert_allclose(ssim(first, second), expected, rtol=1e-9)
    assert np.array_equal(ssim(first, second), ssim(second, first))


def test_other_shapes_are_refused() -> None:
    with pytest.raises(InputError, match="no pairs"):
        psnr(noise(0), noise(0)[:1])
    with pytest.raises(InputError, match="at least 11 pixels"):
        ssim(noise(0, 10), noise(0, 10))
