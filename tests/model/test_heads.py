"""A convolution that computes the logits is a linear layer, so that they stay in float and it runs in integers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from tests.support import SHAPE, make_images, randomise
from torch import Tensor, nn

from quantinel.backends.onnx_qdq import PROFILES, to_onnx
from quantinel.backends.runtime import Session, execution
from quantinel.data.images import as_float
from quantinel.model.graph import aten, trace
from quantinel.model.zoo import ARCHITECTURES, build
from quantinel.quantization.calibration import calibrate
from quantinel.quantization.placement import place
from quantinel.quantization.quantized_model import quantize_nearest
from quantinel.quantization.scheme import parse_scheme


class Net(nn.Module):
    """Features, pooled to the kernel's size, a convolution, and a function of its outputs (N, K, 1, 1)."""

    def __init__(self, finish: Callable[[Tensor], Tensor], kernel: int = 1, **options: object) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8)
        self.head = nn.Conv2d(8, 6, kernel, **options)  # type: ignore[arg-type]
        self.finish, self.kernel = finish, kernel

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.norm(self.stem(x)))
        return self.finish(self.head(F.adaptive_avg_pool2d(x, self.kernel)))


def net(finish: Callable[[Tensor], Tensor], kernel: int = 1, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return randomise(Net(finish, kernel, **options))


def flat(y: Tensor) -> Tensor:
    return y.flatten(1)


@pytest.mark.parametrize(
    "finish",
    [
        pytest.param(flat, id="flatten"),
        pytest.param(lambda y: y.view(y.size(0), -1), id="view"),
        pytest.param(lambda y: y.reshape(-1, 6), id="reshape"),
        pytest.param(lambda y: y.squeeze(3).squeeze(2), id="squeeze"),
        pytest.param(lambda y: y.squeeze((2, 3)), id="squeeze-both"),
        pytest.param(lambda y: y[:, :, 0, 0], id="index"),
        pytest.param(lambda y: y.permute(0, 2, 3, 1).flatten(1), id="permute"),
        pytest.param(lambda y: y[:, :4].flatten(1), id="slice"),
        pytest.param(lambda y: y.mean((2, 3)), id="mean"),
        pytest.param(lambda y: F.adaptive_avg_pool2d(y, 1).flatten(1), id="pool"),
        pytest.param(lambda y: y.flatten(1).log_softmax(1), id="softmax"),
    ],
)
def test_logits_of_a_convolution_stay_float(finish: Callable[[Tensor], Tensor]) -> None:
    """Regression: logits were rounded to the 8-bit grid where a flatten stood behind the convolution: exact ties."""
    module, images = net(finish), make_images(40)
    graph = trace(module, SHAPE)
    x = images.as_float()
    torch.testing.assert_close(graph(x), module(x).detach(), rtol=1e-5, atol=1e-5)
    assert [(layer.name, layer.kind, layer.kernel) for layer in graph.layers] == [
        ("stem", "conv", ()),
        ("head", "linear", (1, 1)),
    ]
    calibration = calibrate(graph, images, parse_scheme("int8"))
    assert graph.node(calibration.placement.points[-1]).users.keys() == {graph.node(graph.layers[-1].node)}
    model = quantize_nearest(graph, calibration)
    file = to_onnx(model, PROFILES["onnxruntime-x86"]).SerializeToString()
    assert execution(file, ["stem", "head"]).integer_layers == 2
    expected = model.simulate()(x)
    torch.testing.assert_close(Session(file).logits(images.images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kernel", "options"),
    [(4, {}), (4, {"bias": False}), (1, {"bias": False}), (1, {"padding": "same"}), (1, {"stride": 2})],
)
@pytest.mark.parametrize("scheme", ["int8", "int8-dynamic", "int4"])
def test_a_kernel_over_the_whole_input_is_a_matrix(kernel: int, options: dict[str, object], scheme: str) -> None:
    module, images = net(flat, kernel, **options), make_images(40)
    graph = trace(module, SHAPE)
    x = images.as_float()
    torch.testing.assert_close(graph(x), module(x).detach(), rtol=1e-5, atol=1e-5)
    head = graph.layers[-1]
    assert torch.equal(graph.weight(head), module.get_parameter("head.weight").flatten(1))
    assert head.kernel == (kernel, kernel)
    model = quantize_nearest(graph, calibrate(graph, images, parse_scheme(scheme)))
    file = to_onnx(model, PROFILES["onnxruntime-x86"]).SerializeToString()
    assert execution(file, ["stem", "head"]).integer_layers == 2


class Twice(nn.Module):
    """The convolution of the logits is called before, on other features."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.adaptive_avg_pool2d(self.head(self.stem(x)), 1)).flatten(1)


class Gate(nn.Module):
    """A 1x1 convolution that scales channels (squeeze and excitation)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gate = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return (x * torch.sigmoid(self.gate(F.adaptive_avg_pool2d(x, 1)))).mean((2, 3))


@pytest.mark.parametrize(
    "module",
    [
        pytest.param(net(flat, groups=2), id="grouped"),
        pytest.param(net(flat, padding=1, stride=3), id="padded"),
        pytest.param(net(flat, padding=1), id="positions"),
        pytest.param(net(lambda y: F.relu(y).flatten(1)), id="relu"),
        pytest.param(Twice().eval(), id="shared"),
        pytest.param(Gate().eval(), id="gate"),
    ],
)
def test_other_convolutions_stay(module: nn.Module) -> None:
    """They run in integers, which needs their outputs on a grid."""
    graph = trace(module, SHAPE)
    assert {layer.kind for layer in graph.layers} == {"conv"}
    images = make_images(20)
    model = quantize_nearest(graph, calibrate(graph, images, parse_scheme("int8")))
    file = to_onnx(model, PROFILES["onnxruntime-x86"]).SerializeToString()
    assert execution(file, [layer.name for layer in graph.layers]).integer_layers == len(graph.layers)


def test_batch_norm_behind_the_head_is_folded_first() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 5, 1), nn.BatchNorm2d(5))
    module = randomise(nn.Sequential(network, nn.Flatten()))
    x = as_float(make_images(8).images)
    for fold, kind in ((True, "linear"), (False, "conv")):
        graph = trace(module, SHAPE, fold_batch_norm=fold)
        torch.testing.assert_close(graph(x), module(x).detach(), rtol=1e-4, atol=1e-4)
        assert graph.layers[-1].kind == kind
        assert set(graph.batch_norms) == {graph.layers[-1].name}


class Sum(nn.Module):
    """Logits are a sum of two convolutions' outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return (self.one(x) + self.two(x)).flatten(1)


def test_a_sum_that_is_only_moved_to_the_output_is_not_rounded() -> None:
    """Regression: only the very output was spared, not a sum with a flatten behind it."""
    graph = trace(Sum().eval(), (3, 4, 4))
    placement = place(graph)
    added = next(node.name for node in graph.module.graph.nodes if node.target is aten.add.Tensor)
    assert added not in placement.points
    assert {layer.node for layer in graph.layers} <= set(placement.points)


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in ("vgg16", "resnet56", "vit_small")])
def test_linear_heads_are_as_they_were(name: str) -> None:
    torch.manual_seed(0)
    module = build(name, num_classes=7)
    graph = trace(module, (3, 32, 32))
    convolutions = [path for path, layer in module.named_modules() if isinstance(layer, nn.Conv2d)]
    assert sorted(layer.name for layer in graph.layers if layer.kind == "conv") == sorted(convolutions)
    points = set(place(graph).points)
    fed = {graph.node(layer.node).args[0].name for layer in graph.layers}  # type: ignore[union-attr]
    assert fed <= points
    assert not any(layer.node in points for layer in graph.layers if layer.kind == "linear")
