"""Tracing and folding keep the function, whatever the normalisation looks like."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from tests.support import SHAPE, randomise
from torch import Tensor, nn

from quantinel.backends.onnx_qdq import PROFILES, to_onnx
from quantinel.backends.runtime import Session
from quantinel.data.images import ImageSet, as_float
from quantinel.errors import InputError, UnsupportedError
from quantinel.model.graph import FloatGraph, aten, trace
from quantinel.model.zoo import ARCHITECTURES, build
from quantinel.quantization.calibration import calibrate
from quantinel.quantization.quantized_model import quantize_nearest
from quantinel.quantization.scheme import QuantScheme

FAST = [name for name in ARCHITECTURES if name not in ("vgg16", "resnet56", "vit_small", "mobilenetv2")]


@pytest.mark.parametrize("name", FAST)
def test_zoo_folds_exactly(name: str) -> None:
    torch.manual_seed(0)
    module = randomise(build(name, num_classes=7))
    for layer in module.modules():
        if isinstance(layer, nn.LayerNorm):
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
    graph = trace(module, (3, 32, 32))
    x = torch.rand(3, 3, 32, 32)
    expected = module(x).detach()
    torch.testing.assert_close(graph(x), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    targets = {node.target for node in graph.module.graph.nodes}
    assert aten.batch_norm.default not in targets
    weights = sum(isinstance(layer, nn.Conv2d | nn.Linear) for layer in module.modules())
    assert len(graph.layers) == weights


def test_odd_network(odd_net: nn.Module, odd_graph: FloatGraph) -> None:
    x = torch.rand(3, *SHAPE)
    torch.testing.assert_close(odd_graph(x), odd_net(x).detach(), rtol=1e-4, atol=1e-5)
    assert [layer.name for layer in odd_graph.layers] == ["stem", "grouped", "depthwise", "point", "hidden", "head"]
    assert [layer.groups for layer in odd_graph.layers] == [1, 2, 8, 1, 1, 1]


def test_the_users_module_is_untouched(odd_net: nn.Module) -> None:
    before = {name: value.clone() for name, value in odd_net.state_dict().items()}
    graph = trace(odd_net, SHAPE)
    graph.module.get_buffer(graph.layers[0].weight).zero_()
    assert all(torch.equal(before[name], value) for name, value in odd_net.state_dict().items())


def test_layer_norm_gamma_is_folded_with_zeros_and_signs() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.LayerNorm(8), nn.Linear(8, 3, bias=False)).eval()
    module[2].weight.data = torch.tensor([1.0, -2.0, 0.0, 0.5, 3.0, -0.1, 1.0, 2.0])
    module[2].bias.data = torch.randn(8)
    graph = trace(module, (3, 2, 2))
    x = torch.rand(4, 3, 2, 2)
    torch.testing.assert_close(graph(x), module(x).detach(), rtol=1e-5, atol=1e-5)
    norm = next(node for node in graph.module.graph.nodes if node.target is aten.layer_norm.default)
    assert norm.args[2] is None
    assert norm.args[3] is None


@pytest.mark.parametrize("name", ["resnet20", "vit_tiny"])
def test_batch_norm_may_stay_and_layer_norm_is_folded_either_way(name: str) -> None:
    torch.manual_seed(0)
    module = randomise(build(name, num_classes=7))
    folded, graph = trace(module, (3, 32, 32)), trace(module, (3, 32, 32), fold_batch_norm=False)
    x = torch.rand(3, 3, 32, 32)
    expected = module(x).detach()
    torch.testing.assert_close(graph(x), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    targets = [node.target for node in graph.module.graph.nodes]
    norms = sum(isinstance(layer, nn.BatchNorm2d) for layer in module.modules())
    assert targets.count(aten.batch_norm.default) == norms
    assert set(graph.batch_norms) == set(folded.batch_norms)
    assert [layer.name for layer in graph.layers] == [layer.name for layer in folded.layers]
    for layer, same in zip(graph.layers, folded.layers, strict=True):
        if layer.kind == "conv":
            assert torch.equal(graph.weight(layer), module.get_parameter(f"{layer.name}.weight"))
        else:
            assert torch.equal(graph.weight(layer), folded.weight(same))


class Shared(nn.Module):
    """One convolution called twice, with a BatchNorm of its own each time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.first, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.first(self.conv(x)))
        x = F.relu_(self.second(self.conv(x)))
        return self.head(x.mean((2, 3)))


def test_shared_weights_keep_their_own_normalisation() -> None:
    torch.manual_seed(0)
    module = randomise(Shared())
    graph = trace(module, SHAPE)
    x = torch.rand(2, *SHAPE)
    torch.testing.assert_close(graph(x), module(x).detach(), rtol=1e-4, atol=1e-5)
    assert [layer.name for layer in graph.layers] == ["conv", "conv#2", "head"]


class InPlaceResidual(nn.Module):
    """Reads a tensor again after an in-place operator changed it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 3, 1), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y.relu_()
        y += 0.5
        return self.head((y * y).mean((2, 3)))


def test_in_place_operators_become_functional() -> None:
    torch.manual_seed(0)
    module = InPlaceResidual().eval()
    x = torch.rand(2, *SHAPE)
    expected = module(x.clone()).detach()
    graph = trace(module, SHAPE)
    torch.testing.assert_close(graph(x), expected)
    assert not any(
        str(node.target).split(".")[1].endswith("_") for node in graph.module.graph.nodes if node.op == "call_function"
    )


class Encoder(nn.Module):
    """torch's own transformer layer, which makes copies and views of them."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


@pytest.mark.filterwarnings("ignore")
def test_a_transformer_of_torch() -> None:
    torch.manual_seed(0)
    module = Encoder().eval()
    graph = trace(module, SHAPE)
    images = torch.randint(0, 256, (32, *SHAPE), dtype=torch.uint8)
    expected = module(as_float(images)).detach()
    torch.testing.assert_close(graph(as_float(images)), expected, rtol=1e-4, atol=1e-5)
    quantized = quantize_nearest(graph, calibrate(graph, ImageSet(images, None, "noise"), QuantScheme()))
    logits = Session(to_onnx(quantized, PROFILES["onnxruntime-x86"]).SerializeToString()).logits(images)
    assert float((logits - expected).abs().max()) < 0.1 * float(expected.abs().max())


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x.mean((2, 3))
        return self.head(x) if float(x.sum()) > 0 else self.head(-x)


class TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.head(x.mean((2, 3)))
        return logits, logits


@pytest.mark.parametrize(
    ("module", "message"),
    [
        pytest.param(Branching(), "torch.export", id="control-flow"),
        pytest.param(TwoOutputs(), "several tensors", id="two-outputs"),
        pytest.param(nn.Flatten(), "no convolution or linear layer", id="no-layers"),
        pytest.param(nn.Conv2d(3, 4, 3), "logits", id="no-logits"),
    ],
)
def test_unsupported_models_say_why(module: nn.Module, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message) as caught:
        trace(module, SHAPE)
    assert "\n" not in str(caught.value)


def test_degenerate_statistics_are_reported() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 196, 2)).eval()
    module[1].running_var = torch.full((4,), float("nan"))
    with pytest.raises(InputError, match="degenerate"):
        trace(module, SHAPE)


def test_without_normalisation_the_message_speaks_of_none() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 256, 2)).eval()
    module[1].weight.data[0, 0] = float("nan")
    with pytest.raises(InputError, match="not finite on random images; check its weights"):
        trace(module, SHAPE)


class Asking(nn.Module):
    """A linear classifier with something before or behind it that looks at the batch."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.change = change
        self.head = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.change(x).mean((2, 3)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: -x if x.shape[0] == 1 else x, "in a batch of 1 than"),
        (lambda x: x - x.mean(0, keepdim=True), "in a batch of 1 than"),
        (lambda x: F.instance_norm(x) + F.batch_norm(x, None, None, training=True), "in a batch of 1 than"),
        (lambda x: -x if x.shape[0] > 20 else x, "is not 2 to 20"),
        (lambda x: -x if x.shape[0] == 3 else x, "in a batch of 3 than"),
    ],
    ids=["alone", "mean", "statistics", "many", "three"],
)
def test_models_that_look_at_the_batch(change: Callable[[Tensor], Tensor], message: str) -> None:
    """Regression: one way of the branch was traced, and judged for all batches."""
    torch.manual_seed(0)
    with pytest.raises(UnsupportedError, match=message):
        trace(Asking(change), SHAPE)
