"""After correction, layer outputs have the float network's means, as far as the int32 grid allows."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from tests.support import make_images
from torch import fx, nn

from quantinel.data.images import ImageSet
from quantinel.defenses import EFRAP, Nearest
from quantinel.model.graph import FloatGraph, trace
from quantinel.quantization.calibration import calibrate
from quantinel.quantization.quantized_model import QuantizedModel, quantize_nearest
from quantinel.quantization.reconstruction import choose_codes
from quantinel.quantization.scheme import parse_scheme


class Recorder(fx.Interpreter):
    """Channel means of the outputs of some nodes."""

    def __init__(self, module: fx.GraphModule, nodes: set[str]) -> None:
        super().__init__(module)
        self.nodes, self.means = nodes, dict[str, torch.Tensor]()

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self.nodes:
            self.means[n.name] = value.mean(dim=[index for index in range(value.ndim) if index != 1])
        return value


def mean_differences(graph: FloatGraph, model: QuantizedModel, images: ImageSet) -> dict[str, torch.Tensor]:
    """Float network minus simulated deployment, per layer with a bias and channel."""
    layers = {layer.node: layer.name for layer in graph.layers if layer.bias is not None}
    recorders = [Recorder(module, set(layers)) for module in (graph.module, model.simulate())]
    with torch.inference_mode():
        for recorder in recorders:
            recorder.run(images.as_float())
    return {name: recorders[0].means[node] - recorders[1].means[node] for node, name in layers.items()}


@pytest.mark.parametrize("method", [Nearest(bias_correction=True), EFRAP(bias_correction=True)])
def test_means_are_those_of_the_float_network(method: Nearest | EFRAP, odd_graph: FloatGraph, images: ImageSet) -> None:
    ranges = calibrate(odd_graph, images, parse_scheme("int4"))
    plain, _ = choose_codes(odd_graph, ranges, dataclasses.replace(method, bias_correction=False))
    corrected, _ = choose_codes(odd_graph, ranges, method)
    before, after = (mean_differences(odd_graph, model, images) for model in (plain, corrected))
    assert len(after) == 5
    for name, difference in after.items():
        step = corrected.layers[name].bias_scale
        assert step is not None
        assert (difference.abs() <= 0.51 * step + 1e-5).all(), name
    medians = [float(torch.cat(list(means.values())).abs().median()) for means in (before, after)]
    assert medians[0] > 5 * medians[1]


@pytest.mark.parametrize("scheme", ["int4-dynamic", "int4-weight-only"])
def test_biases_that_stay_float_are_corrected_exactly(scheme: str, odd_graph: FloatGraph, images: ImageSet) -> None:
    ranges = calibrate(odd_graph, images, parse_scheme(scheme))
    plain, _ = choose_codes(odd_graph, ranges, Nearest())
    corrected, _ = choose_codes(odd_graph, ranges, Nearest(bias_correction=True))
    before, after = (mean_differences(odd_graph, model, images) for model in (plain, corrected))
    largest = [max(float(mean.abs().max()) for mean in means.values()) for means in (before, after)]
    assert largest[1] < 1e-4 < 1e-2 < largest[0]
    assert all(torch.equal(corrected.codes[name], codes) for name, codes in plain.codes.items())


def test_the_argument_overrides_the_option(odd_graph: FloatGraph, images: ImageSet) -> None:
    ranges = calibrate(odd_graph, images, parse_scheme("int4"))
    by_option, _ = choose_codes(odd_graph, ranges, Nearest(bias_correction=True))
    by_argument, _ = choose_codes(odd_graph, ranges, Nearest(), bias_correction=True)
    off, _ = choose_codes(odd_graph, ranges, Nearest(bias_correction=True), bias_correction=False)
    plain, _ = choose_codes(odd_graph, ranges, Nearest())
    for name in by_option.layers:
        for a, b in ((by_option, by_argument), (off, plain)):
            left, right = a.layers[name].bias_codes, b.layers[name].bias_codes
            assert (left is None and right is None) or torch.equal(left, right)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [1e-8, 1e-20, 0.0])
@pytest.mark.parametrize("scheme", ["int8", "int8-per-tensor"])
def test_filters_that_are_all_but_zero_keep_their_bias(scheme: str, size: float) -> None:
    """Their own grid would be so fine that int32 could not hold the bias; that of pruned filters was as coarse as 1."""
    torch.manual_seed(5)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    with torch.no_grad():
        module[0].weight[: None if scheme == "int8-per-tensor" else 2] *= size  # type: ignore[index, operator]
        module[0].bias.fill_(0.5)  # type: ignore[union-attr, operator]
    graph, images = trace(module, (3, 8, 8)), make_images(8, (3, 8, 8), 3)
    model = quantize_nearest(graph, calibrate(graph, images, parse_scheme(scheme)))
    bias = model.bias(model.layers["0"])
    assert bias is not None
    torch.testing.assert_close(bias[:2], torch.full((2,), 0.5), rtol=1e-5, atol=0)
    answers = images.as_float()
    assert float((model.simulate()(answers) - graph(answers)).abs().max()) < 4 * model.output_step
