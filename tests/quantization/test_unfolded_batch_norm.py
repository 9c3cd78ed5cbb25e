"""BatchNorm left behind the layer in float: simulation, integers against folded ones, and what needs folding."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tests.support import make_images, randomise
from torch import Tensor, nn

from quantinel.model.graph import trace
from quantinel.quantization.calibration import ActivationParameters, calibrate
from quantinel.quantization.quantized_model import QuantizedModel, quantize_nearest
from quantinel.quantization.scheme import QuantScheme, parse_scheme

SHAPE = (3, 8, 8)
IMAGES = make_images(24, SHAPE, 4)


class Net(nn.Module):
    """Two convolutions, one with a bias, with BatchNorms whose gammas have both signs, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.second, self.norm2 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(x)))
        x = F.relu(self.norm2(self.second(x)))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    made = Net()
    randomise(made)
    made.norm.weight.data = torch.tensor([1.5, -0.7, 0.4, -2.0, 0.1, 3.0])
    made.norm2.weight.data = torch.tensor([-0.3, 1.2, -1.8, 0.6, 2.5, 0.9])
    return made


def quantized(net: nn.Module, scheme: str, fold: bool) -> QuantizedModel:
    graph = trace(net, SHAPE, fold_batch_norm=fold)
    return quantize_nearest(graph, calibrate(graph, IMAGES, parse_scheme(scheme)))


def rounded(weight: Tensor, scheme: QuantScheme) -> tuple[Tensor, Tensor]:
    """Rounded weight and its scale (O,), by hand."""
    largest = weight.abs().flatten(1).amax(1)
    scale = (largest if scheme.granularity == "channel" else largest.max().expand(len(largest))) / scheme.levels
    wide = scale.reshape(-1, *[1] * (weight.ndim - 1))
    return torch.round(weight / wide).clamp(scheme.code_min, scheme.code_max) * wide, scale


def reference(net: Net, scheme: QuantScheme, grids: list[ActivationParameters], x: Tensor) -> Tensor:
    """The deployed arithmetic by hand: rounded raw weights, BatchNorm of its own, activations as in the placement."""
    grids = list(grids)

    def activation(value: Tensor) -> tuple[Tensor, float | None]:
        if scheme.activations == "none":
            return value, None
        grid = grids.pop(0)
        codes = (torch.round(value / grid.scale) + grid.zero_point).clamp(0, 255)
        return (codes - grid.zero_point) * grid.scale, grid.scale

    def bias(layer: nn.Conv2d | nn.Linear, scale: Tensor, step: float | None) -> Tensor | None:
        if layer.bias is None or step is None:
            return layer.bias
        return torch.round(layer.bias / (scale * step)) * (scale * step)

    for layer, norm in ((net.first, net.norm), (net.second, net.norm2)):
        x, step = activation(x)
        weight, scale = rounded(layer.weight, scheme)
        x, _ = activation(F.conv2d(x, weight, bias(layer, scale, step), padding=1))
        x = F.relu(F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps))
    x, step = activation(x.mean((2, 3)))
    weight, scale = rounded(net.head.weight, scheme)
    assert not grids
    return F.linear(x, weight, bias(net.head, scale, step))


@pytest.mark.parametrize(
    "scheme",
    ["int8-weight-only", "int4-weight-only", "int4-per-tensor-weight-only", "int4-per-tensor-full-weight-only",
     "int4", "int4-per-tensor", "int8-per-tensor-full"],
)  # fmt: skip
@torch.no_grad()
def test_the_simulation_is_the_arithmetic_by_hand(net: Net, scheme: str) -> None:
    model = quantized(net, scheme, fold=False)
    x = IMAGES.as_float()
    grids = [model.activations[point] for point in model.placement.points if model.activations]
    expected = reference(net, model.scheme, grids, x)
    torch.testing.assert_close(model.simulate()(x), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_per_channel_folding_changes_no_more_than_signs(net: Net, scheme: str) -> None:
    folded, apart = (quantized(net, scheme, fold).codes for fold in (True, False))
    for name, norm in (("first", net.norm), ("second", net.norm2)):
        signs = norm.weight.sign().reshape(-1, 1, 1, 1)
        assert torch.equal(apart[name].float(), folded[name] * signs)
    assert torch.equal(apart["head"], folded["head"])


def test_per_tensor_folding_changes_integers(net: Net) -> None:
    folded, apart = (quantized(net, "int4-per-tensor", fold).codes for fold in (True, False))
    for name in ("first", "second"):
        assert float((apart[name].abs() != folded[name].abs()).float().mean()) > 0.2
    assert torch.equal(apart["head"], folded["head"])
