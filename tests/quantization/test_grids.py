"""Properties of scales, cells and codes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tests.support import make_images
from torch import Tensor, nn

from quantinel.errors import InputError
from quantinel.model.graph import trace
from quantinel.quantization import ranges
from quantinel.quantization.calibration import calibrate
from quantinel.quantization.ranges import affine_parameters, weight_scales
from quantinel.quantization.rounding import broadcast_scale, dequantize, nearest_codes, rounding_cell
from quantinel.quantization.scheme import QuantScheme, parse_scheme

GRIDS = [
    pytest.param(QuantScheme(bits, granularity, grid), id=f"w{bits}-{granularity}-{grid}")
    for bits in (2, 4, 8)
    for granularity in ("channel", "tensor")
    for grid in ("narrow", "full")
]
weights = arrays.arrays(
    "float32",
    st.tuples(st.integers(1, 5), st.integers(1, 7)),
    elements=st.floats(-8.0, 8.0, width=32, allow_subnormal=False),
).map(torch.from_numpy)


@pytest.mark.parametrize("scheme", GRIDS)
@given(weight=weights)
@settings(max_examples=40, deadline=None)
def test_cells_contain_the_weight_and_its_nearest_code(scheme: QuantScheme, weight: Tensor) -> None:
    scale = weight_scales(weight, scheme)
    assert (scale > 0).all()
    codes = nearest_codes(weight, scale, scheme).float()
    cell = rounding_cell(weight, scale, scheme)
    assert ((codes == cell.floor) | (codes == cell.ceil)).all()
    assert (cell.ceil - cell.floor <= 1).all()
    assert (cell.floor >= scheme.code_min).all()
    assert (cell.ceil <= scheme.code_max).all()
    steps = weight / broadcast_scale(scale, weight)
    inside = steps.abs() <= scheme.code_max
    assert ((steps - cell.floor)[inside] >= -1e-3).all()
    assert ((cell.ceil - steps)[inside] >= -1e-3).all()
    assert (cell.error <= 0.5001 * broadcast_scale(scale, weight) + 1e-6).all()


@pytest.mark.parametrize("scheme", [grid for grid in GRIDS if grid.values[0].grid == "narrow"])
@given(weight=weights)
@settings(max_examples=40, deadline=None)
def test_narrow_grids_survive_requantization(scheme: QuantScheme, weight: Tensor) -> None:
    """Any floor/ceil choice keeps the largest weight on +-code_max, so the same scale and codes are found again."""
    scale = weight_scales(weight, scheme)
    cell = rounding_cell(weight, scale, scheme)
    pick = torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    chosen = torch.where(pick, cell.floor, cell.ceil)
    again = weight_scales(dequantize(chosen, scale), scheme)
    used = chosen.abs().flatten(1).amax(1) > 0 if scheme.granularity == "channel" else chosen.abs().amax()[None] > 0
    torch.testing.assert_close(again[used], scale[used], rtol=1e-6, atol=0)
    assert torch.equal(nearest_codes(dequantize(chosen, scale), scale, scheme).float(), chosen)


def test_negative_channels_mirror_their_codes() -> None:
    """Folding a negative gamma flips signs and nothing else: narrow grids are symmetric."""
    weight = torch.randn(6, 40, generator=torch.Generator().manual_seed(1))
    scheme = QuantScheme()
    codes = nearest_codes(weight, weight_scales(weight, scheme), scheme)
    mirrored = nearest_codes(-weight, weight_scales(-weight, scheme), scheme)
    assert torch.equal(codes, -mirrored)


def test_dead_channel_gets_scale_one() -> None:
    weight = torch.tensor([[0.0, 0.0], [1.0, -2.0]])
    scale = weight_scales(weight, QuantScheme())
    assert scale[0] == 1.0
    assert nearest_codes(weight, scale, QuantScheme()).tolist() == [[0, 0], [64, -127]]


def test_least_squares_range_is_no_worse_than_the_maximum() -> None:
    weight = torch.randn(8, 200, generator=torch.Generator().manual_seed(2)) ** 3
    errors = {}
    for rule in ("minmax", "mse"):
        scheme = QuantScheme(weight_bits=4, weight_range=rule)  # type: ignore[arg-type]
        scale = weight_scales(weight, scheme)
        errors[rule] = (dequantize(nearest_codes(weight, scale, scheme), scale) - weight).square().sum(1)
    assert (errors["mse"] <= errors["minmax"] + 1e-6).all()
    assert (errors["mse"] < 0.9 * errors["minmax"]).any()


@pytest.mark.parametrize("share", [50.1, 99.9, 100.0])
def test_percentiles_of_rows_that_torch_refuses(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    weight = torch.randn(3, 500, generator=torch.Generator().manual_seed(3))
    for granularity in ("channel", "tensor"):
        scheme = QuantScheme(granularity=granularity, weight_range="percentile", weight_percentile=share)  # type: ignore[arg-type]
        with monkeypatch.context() as patched:
            patched.setattr(ranges, "_LONGEST_ROW", 400)
            long = weight_scales(weight, scheme)
        assert torch.allclose(long, weight_scales(weight, scheme))


@given(low=st.floats(-1e3, 1e3), high=st.floats(-1e3, 1e3))
def test_affine_grid_holds_zero_exactly(low: float, high: float) -> None:
    scale, zero = affine_parameters(low, high, 255)
    assert scale > 0
    assert 0 <= zero <= 255
    top = (255 - zero) * scale
    assert top >= max(high, 0.0) - scale
    assert -zero * scale <= min(low, 0.0) + scale


@pytest.mark.parametrize("scheme", ["int8", "int8-percentile", "int8-mse"])
def test_no_grid_is_made_for_values_that_are_not_finite(scheme: str) -> None:
    """A sigmoid hides an overflow from the logits."""
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    with torch.no_grad():
        module[0].weight.fill_(3e38)  # type: ignore[union-attr, operator]
    with pytest.raises(InputError, match="conv2d is to be quantized"):
        calibrate(trace(module, (3, 8, 8)), make_images(4, (3, 8, 8), 3), parse_scheme(scheme))
