"""The grid of activations is that of PyTorch's operator, to the bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantinel.quantization import fake_quantize as module
from quantinel.quantization.fake_quantize import fake_quantize


@given(
    st.floats(1e-6, 1e3), st.integers(0, 255), st.sampled_from([15, 127, 255]),
    st.lists(st.floats(width=32), min_size=1, max_size=20), st.integers(1, 8),
)  # fmt: skip
@settings(deadline=None)
def test_values_are_those_of_the_operator(scale: float, zero: int, levels: int, values: list[float], part: int) -> None:
    zero = min(zero, levels)
    halves = torch.arange(-20, 300) * 0.5 * torch.tensor(scale)  # ties
    x = torch.cat([torch.tensor(values), halves])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PART_VALUES", part)
        found = fake_quantize(x, scale, zero, levels)
    assert torch.equal(found, torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, levels))


def test_memory_format_is_kept_and_the_input_left_alone() -> None:
    x = torch.randn(5, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    before = x.clone()
    found = fake_quantize(x, 0.1, 12, 255)
    assert found.stride() == x.stride()
    assert torch.equal(x, before)
    assert torch.equal(found, torch.fake_quantize_per_tensor_affine(x, 0.1, 12, 0, 255))


def test_gradients_pass_within_the_range_alone() -> None:
    x = torch.tensor([-5.0, 0.31, 50.0], requires_grad=True)
    fake_quantize(x, 0.1, 10, 255).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 1.0, 0.0]
