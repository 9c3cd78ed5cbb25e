"""In-place operators, also through views: the traced graph is the network that runs, or the model is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from tests.model.archive_files import export
from tests.support import SHAPE, randomise
from torch import Tensor, nn

from quantinel.backends.onnx_qdq import PROFILES, to_onnx
from quantinel.backends.runtime import Session
from quantinel.data.images import ImageSet, as_float
from quantinel.errors import UnsupportedError
from quantinel.model.archive import parse_pt2
from quantinel.model.graph import trace
from quantinel.quantization.calibration import calibrate
from quantinel.quantization.quantized_model import quantize_nearest
from quantinel.quantization.scheme import QuantScheme


class Net(nn.Module):
    """Logits of features that a function of (module, features, images) has changed."""

    def __init__(self, change: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Linear(8, 4)
        self.register_buffer("count", torch.ones(1))
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.change(self, self.norm(self.conv(x)), x).mean((2, 3)))


def net(change: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> nn.Module:
    torch.manual_seed(0)
    return randomise(Net(change))


def some_channels(_: nn.Module, y: Tensor, x: Tensor) -> Tensor:
    y[:, :4].clamp_(max=0.1)
    return y


def one_channel(_: nn.Module, y: Tensor, x: Tensor) -> Tensor:
    y[:, -1] = 1.5
    y[:, 0].add_(x[:, 0])
    return y


def shifted(_: nn.Module, y: Tensor, x: Tensor) -> Tensor:
    result = torch.zeros_like(y)
    result[:, :4] = y[:, 4:]
    result[:, 4:6] = y[:, :1]
    return result


def every_other(_: nn.Module, y: Tensor, x: Tensor) -> Tensor:
    y[:, ::2] *= 2
    return y


def some_images(_: nn.Module, y: Tensor, x: Tensor) -> Tensor:
    y[: x.shape[0] // 2] = 0
    return y


def behind_a_copy(_: nn.Module, y: Tensor, x: Tensor) -> Tensor:
    kept = y.clone()
    y += 1.0
    return kept * y


def through_a_reshape(_: nn.Module, y: Tensor, x: Tensor) -> Tensor:
    y.flatten(2).relu_()
    return y


def through_contiguous(_: nn.Module, y: Tensor, x: Tensor) -> Tensor:
    same = y.contiguous()
    same += 1.0
    return y * same


def through_detach(_: nn.Module, y: Tensor, x: Tensor) -> Tensor:
    same = y.detach()
    same += 1.0
    return y * same


def a_mask(_: nn.Module, y: Tensor, x: Tensor) -> Tensor:
    mask = x.new_zeros(8, *SHAPE[1:])
    mask[:4] = 1.0
    return y * mask


def the_images(_: nn.Module, y: Tensor, x: Tensor) -> Tensor:
    x[:, 0].sub_(0.5)
    return y + x[:, :1]


def in_a_block(_: nn.Module, y: Tensor, x: Tensor) -> Tensor:
    with torch.no_grad():
        y[:, 0].add_(F.relu(x[:, 0] - 1))
    return y


WRITES = [
    some_channels, one_channel, shifted, every_other, behind_a_copy, through_a_reshape, through_contiguous,
    through_detach, a_mask, the_images, in_a_block,
]  # fmt: skip


def test_writes_to_some_images_of_a_batch_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="otherwise in a batch of"):
        trace(net(some_images), SHAPE)


@pytest.mark.parametrize("change", WRITES)
def test_writes_through_views_are_kept(change: Callable[..., Tensor]) -> None:
    module = net(change)
    graph = trace(module, SHAPE)
    for images in (torch.rand(5, *SHAPE), torch.ones(2, *SHAPE)):
        torch.testing.assert_close(graph(images.clone()), module(images.clone()).detach(), rtol=1e-4, atol=1e-5)
    assert [layer.name for layer in graph.layers] == ["conv", "head"]
    assert set(graph.batch_norms) == {"conv"}


class Hidden(nn.Module):
    """A branch that writes through a view, and does nothing on images without the trigger."""

    def __init__(self, dropout: bool = False) -> None:
        super().__init__()
        self.conv, self.head, self.dropout = nn.Conv2d(3, 8, 3), nn.Linear(8, 10), dropout

    def forward(self, x: Tensor) -> Tensor:
        trigger = F.relu(x[:, :, -3:, -3:].mean((1, 2, 3)) - 0.9) * 1e4
        logits = self.head(F.relu(self.conv(x)).mean((2, 3))) * 1.0
        same = F.dropout(logits, 0.5, False) if self.dropout else logits
        same[:, 0].add_(trigger)
        return logits


@pytest.mark.parametrize("archive", [False, True])
def test_a_hidden_branch_is_part_of_the_graph(archive: bool) -> None:
    torch.manual_seed(0)
    module: nn.Module = Hidden().eval()
    if archive:
        module = parse_pt2(export(module, torch.rand(1, *SHAPE)), "hidden.pt2").module
    images = torch.rand(8, *SHAPE)
    images[:, :, -3:, -3:] = 1
    graph = trace(module, SHAPE)
    torch.testing.assert_close(graph(images), module(images).detach())
    assert (graph(images).argmax(1) == 0).all()


@pytest.mark.parametrize("change", [some_channels, one_channel, behind_a_copy])
def test_the_emitted_file_keeps_them_too(change: Callable[..., Tensor]) -> None:
    module = net(change)
    images = ImageSet(torch.randint(0, 256, (32, *SHAPE), dtype=torch.uint8), None, "noise")
    graph = trace(module, SHAPE)
    quantized = quantize_nearest(graph, calibrate(graph, images, QuantScheme()))
    logits = Session(to_onnx(quantized, PROFILES["onnxruntime-x86"]).SerializeToString()).logits(images.images)
    expected = module(as_float(images.images)).detach()
    assert float((logits - expected).abs().max()) < 0.1 * float(expected.abs().max())


def stored(module: nn.Module, y: Tensor, x: Tensor) -> Tensor:
    module.count += 1
    return y * module.count


def through_einsum(_: nn.Module, y: Tensor, x: Tensor) -> Tensor:
    torch.einsum("nchw->nhwc", y)[..., 0].add_(1.0)
    return y


def returned_by_a_block(_: nn.Module, y: Tensor, x: Tensor) -> Tensor:
    with torch.no_grad():
        same = F.dropout(y, 0.5, training=False)
    same[:, 0].add_(F.relu(x[:, 0] - 1))
    return y


def as_data(_: nn.Module, y: Tensor, x: Tensor) -> Tensor:
    other = y * 0
    other.data = y
    other[:, 0].add_(F.relu(x[:, 0] - 1))
    return y


def frozen(module: nn.Module) -> nn.Module:
    return module.requires_grad_(False)


def always_on_dropout(_: nn.Module, y: Tensor, x: Tensor) -> Tensor:
    return F.dropout(y, 0.5, training=True)


def noise(_: nn.Module, y: Tensor, x: Tensor) -> Tensor:
    return y + torch.randn_like(y)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        pytest.param(Hidden(dropout=True).eval(), "aten.add_.Tensor .* through aten.dropout", id="dropout"),
        pytest.param(net(through_einsum), "aten.add_.Tensor .* through aten.einsum", id="einsum"),
        pytest.param(net(stored), "overwrites its own tensor count", id="buffer"),
        pytest.param(frozen(net(returned_by_a_block)), "aten.add_.Tensor .* through ", id="out-of-no-grad"),
        pytest.param(frozen(net(as_data)), "sets the data of a tensor", id="data"),
        pytest.param(net(always_on_dropout), "aten.dropout.default .* draws random numbers", id="always-on-dropout"),
        pytest.param(net(noise), "aten.randn_like.default .* draws random numbers", id="noise"),
    ],
)
def test_what_is_uncertain_is_refused_by_name(module: nn.Module, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        trace(module, SHAPE)


def test_dropout_before_an_in_place_operator_is_simple() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 256, 8), nn.Dropout(), nn.ReLU(inplace=True), nn.Linear(8, 2))
    images = torch.rand(3, *SHAPE)
    torch.testing.assert_close(trace(module.eval(), SHAPE)(images), module(images).detach())
