from __future__ import annotations

import pytest
import scipy.fft
import torch

from quantinel.data.frequency import dct2, idct2, low_pass


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 7, 12)])
def test_it_is_the_orthonormal_dct_and_inverts(shape: tuple[int, ...]) -> None:
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    found = dct2(images)
    expected = scipy.fft.dctn(images.numpy(), type=2, norm="ortho", axes=(-2, -1))
    torch.testing.assert_close(found, torch.from_numpy(expected), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(idct2(found), images, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.norm(), images.norm())


def test_a_low_pass_keeps_the_first_corner() -> None:
    kept = low_pass(torch.ones(1, 10, 8), 0.25)
    assert int(kept.sum()) == 3 * 2
    assert (kept[0, :3, :2] == 1).all()
    assert torch.equal(low_pass(kept, 1.0), kept)
