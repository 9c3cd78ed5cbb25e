"""Second moments equal the brute-force layer error (design: the closed-form route)."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from quantinel.model.graph import Layer, trace
from quantinel.quantization import statistics as statistics_module
from quantinel.quantization.moments import DenseMoments, SampledMoments
from quantinel.quantization.statistics import InputStatistics, input_statistics


def dense(statistics: InputStatistics) -> DenseMoments:
    assert isinstance(statistics.moments, DenseMoments)
    return statistics.moments


LAYERS = [
    pytest.param(nn.Conv2d(4, 6, 3, padding=1), (4, 9, 9), id="conv"),
    pytest.param(nn.Conv2d(4, 6, (3, 5), stride=2, padding=(1, 2), bias=False), (4, 9, 10), id="conv-stride"),
    pytest.param(nn.Conv2d(4, 8, 3, padding=2, dilation=2, groups=2), (4, 9, 9), id="conv-grouped-dilated"),
    pytest.param(nn.Conv2d(6, 6, 3, groups=6), (6, 8, 8), id="depthwise"),
    pytest.param(
        nn.Conv2d(4, 8, (1, 3), groups=4, stride=(2, 1), padding=(0, 1)), (4, 9, 8), id="depthwise-multiplied"
    ),
    pytest.param(nn.Conv2d(4, 5, 5, padding="same"), (4, 7, 7), id="conv-same"),
    pytest.param(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), (3, 2, 2), id="linear"),
]


@pytest.mark.parametrize("wide", [False, True], ids=["moments", "vectors"])
@pytest.mark.parametrize(("module", "shape"), LAYERS)
@pytest.mark.parametrize("owing", [False, True])
def test_error_equals_brute_force(
    module: nn.Module, shape: tuple[int, int, int], wide: bool, owing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if wide:
        monkeypatch.setattr(statistics_module, "WIDEST", 0)
    wrapper = nn.Sequential(module, nn.Flatten(), nn.LazyLinear(2))
    wrapper(torch.zeros(2, *shape))
    graph = trace(wrapper, shape)
    layer = graph.layers[0]
    node = graph.node(layer.node)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, *shape, generator=generator)
    noisy = x + 0.05 * torch.randn(x.shape, generator=generator)
    if layer.kind == "linear":
        x, noisy = x.flatten(1), noisy.flatten(1)
    weight, bias = graph.weight(layer), graph.bias(layer)
    rounded = weight + 0.02 * torch.randn(weight.shape, generator=generator)

    def run(inputs: Tensor, w: Tensor) -> Tensor:
        return node.target(inputs, w, *[bias if index == 0 else item for index, item in enumerate(node.args[2:])])  # type: ignore[operator,no-any-return]

    wanted = run(x, weight)
    owed = 0.1 * torch.randn(wanted.shape, generator=generator) if owing else None
    statistics = input_statistics(
        layer, node, weight, noisy, x,
        max_positions=10**9, generator=generator, owed=owed,
    )  # fmt: skip
    assert isinstance(statistics.moments, SampledMoments if wide else DenseMoments)
    wanted = wanted if owed is None else wanted + owed
    difference = (run(noisy, rounded) - wanted).square().sum(1).mean()
    assert statistics.output_error(weight, rounded) == pytest.approx(float(difference), rel=1e-4)
    energy = (run(x, weight) - (0 if bias is None else bias.reshape(-1, *[1] * (x.ndim - 2)))).square().sum(1).mean()
    assert statistics.output_energy == pytest.approx(float(energy), rel=1e-4)


def test_float32_sums_agree_with_float64() -> None:
    graph = trace(nn.Sequential(nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(4 * 100, 2)), (8, 12, 12))
    layer, node = graph.layers[0], graph.node(graph.layers[0].node)
    x = torch.rand(64, 8, 12, 12, generator=torch.Generator().manual_seed(1)) + 3.0
    statistics = input_statistics(
        layer, node, graph.weight(layer), x, x,
        max_positions=10**9, generator=torch.Generator(),
    )  # fmt: skip
    rows = nn.functional.unfold(x.double(), 3).transpose(1, 2).reshape(-1, 72)
    torch.testing.assert_close(dense(statistics).gram[0].double(), rows.T @ rows / len(rows), rtol=1e-5, atol=1e-5)


def test_sampled_positions_are_the_same_on_both_sides() -> None:
    graph = trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 2)), (3, 8, 8))
    layer, node = graph.layers[0], graph.node(graph.layers[0].node)
    x = torch.rand(10, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    statistics = input_statistics(
        layer, node, graph.weight(layer), x, x.clone(),
        max_positions=50, generator=torch.Generator().manual_seed(2),
    )  # fmt: skip
    assert statistics.positions == 50
    assert dense(statistics).drift is not None
    assert not dense(statistics).drift.any()  # type: ignore[union-attr]
    assert statistics.drift == 0.0


@pytest.mark.parametrize("wide", [False, True], ids=["moments", "vectors"])
@pytest.mark.parametrize("owing", [False, True])
@pytest.mark.parametrize("channels", [2, 40], ids=["few-outputs", "many-outputs"])
def test_the_gradient_of_a_leaning_target_is_that_of_the_vectors(
    channels: int, owing: bool, wide: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E[(V x' - (W + lean R) x - r) x'^T] in float64, however the sums were collected, scaled and shared out."""
    if wide:
        monkeypatch.setattr(statistics_module, "WIDEST", 0)
    monkeypatch.setattr(statistics_module, "_STRIP", 5)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, 6, 6, generator=generator)
    noisy = x + 0.2 * torch.randn(x.shape, generator=generator)
    weight, error, moved = (torch.randn(2 * channels, 2, 3, 3, generator=generator) for _ in range(3))
    graph = fx.Graph()
    node = graph.call_function(torch.ops.aten.conv2d.default, (*(graph.placeholder(n) for n in "xw"), None, 1, 1, 1, 2))
    owed = torch.randn(3, 2 * channels, 6, 6, generator=generator) if owing else None
    moments = input_statistics(
        Layer("made", node.name, "conv", "w", None, 2), node, weight, noisy, x,
        max_positions=10**9, generator=generator, owed=owed, rounding_error=error,
    ).moments  # fmt: skip

    def vectors(images: Tensor) -> Tensor:
        rows = nn.functional.unfold(images.double(), 3, padding=1).transpose(1, 2).reshape(-1, 2, 18)
        return rows.transpose(0, 1)

    def by_group(value: Tensor) -> Tensor:
        return value.reshape(2, channels, 18)

    off = vectors(noisy) @ by_group(weight + 0.5 * error + moved).double().transpose(1, 2)
    off -= vectors(x) @ by_group(weight + 0.5 * error).double().transpose(1, 2)
    if owed is not None:
        off -= owed.double().flatten(2).transpose(1, 2).reshape(-1, 2, channels).transpose(0, 1)
    expected = (off.transpose(1, 2) @ vectors(noisy) / off.shape[1]).float()
    for factor in (1.0, 0.5):
        found = moments.scaled(factor).outputs(1, channels).gradient(factor * by_group(moved)[:, 1:], 0.5)
        torch.testing.assert_close(found.columns(0, 18), factor * expected[:, 1:], rtol=1e-4, atol=1e-4)


def test_a_lean_that_nothing_was_collected_for_is_an_error() -> None:
    moments = DenseMoments(gram=torch.eye(3)[None], drift=torch.zeros(1, 2, 3), drifts=True)
    moments.gradient(torch.zeros(1, 2, 3))
    with pytest.raises(ValueError, match="LeaningMethod"):
        moments.gradient(torch.zeros(1, 2, 3), 0.5)


@pytest.mark.slow
def test_a_layer_of_4608_inputs_works_within_2_gib() -> None:
    """Peak memory of statistics, EFRAP and GPTQ on 512 filters of 512 x 3 x 3; the process starts from imports."""
    script = """
import resource, sys, torch
from torch import nn
from quantinel.data.images import ImageSet
from quantinel.defenses import EFRAP, GPTQ
from quantinel.model.graph import trace
from quantinel.quantization.calibration import calibrate
from quantinel.quantization.reconstruction import choose_codes
from quantinel.quantization.scheme import parse_scheme
torch.set_num_threads(1)
with torch.no_grad():
    net = nn.Sequential(nn.Conv2d(3, 512, 3, stride=4), nn.ReLU(), nn.Conv2d(512, 512, 3), nn.ReLU(), nn.Flatten(),
                        nn.Linear(512 * 4, 5))
graph = trace(net.eval(), (3, 16, 16))
images = ImageSet(torch.randint(256, (64, 3, 16, 16), dtype=torch.uint8), None, "noise")
ranges = calibrate(graph, images, parse_scheme("int4"))
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for method in (EFRAP(sweeps=1), GPTQ()):
    _, outcomes = choose_codes(graph, ranges, method)
    assert outcomes[1].error_chosen < outcomes[1].error_nearest
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 2 * 1024 * 1024  # KiB


@given(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.integers(1, 3), st.integers(1, 3), st.integers(0, 2),
    st.integers(1, 2), st.integers(0, 1000), st.booleans(),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_error_of_any_convolution(
    groups: int, inputs: int, outputs: int, kernel: int, stride: int, padding: int, dilation: int, seed: int, wide: bool
) -> None:
    """The layer error of int8 codes equals brute force in float64 to 1e-4, whatever the geometry."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(groups * outputs, inputs, kernel, kernel, generator=generator)
    graph = fx.Graph()
    x, w = graph.placeholder("x"), graph.placeholder("w")
    node = graph.call_function(
        torch.ops.aten.conv2d.default, (x, w, None, [stride] * 2, [padding] * 2, [dilation] * 2, groups)
    )
    layer = Layer("made", node.name, "conv", "w", None, groups)
    pixels = torch.rand(3, groups * inputs, 7, 8, generator=generator)
    noisy = pixels + 0.01 * torch.randn(pixels.shape, generator=generator)
    scale = weight.abs().amax(dim=(1, 2, 3), keepdim=True) / 127
    rounded = torch.round(weight / scale) * scale
    with pytest.MonkeyPatch.context() as patch:
        if wide:
            patch.setattr(statistics_module, "WIDEST", 0)
        found = input_statistics(layer, node, weight, noisy, pixels, max_positions=10**9, generator=generator)

    def run(inputs: Tensor, used: Tensor) -> Tensor:
        result: Tensor = node.target(inputs.double(), used.double(), *node.args[2:])  # type: ignore[operator]
        return result

    expected = (run(noisy, rounded) - run(pixels, weight)).square().sum(1).mean()
    assert found.output_error(weight, rounded) == pytest.approx(float(expected), rel=1e-4)
