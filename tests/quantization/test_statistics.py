"""Second moments equal the brute-force layer error (design: the closed-form route)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from quantinel.model.graph import trace
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
def test_error_equals_brute_force(
    module: nn.Module, shape: tuple[int, int, int], wide: bool, monkeypatch: pytest.MonkeyPatch
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

    statistics = input_statistics(
        layer, node, weight, noisy, x,
        max_positions=10**9, generator=generator,
    )  # fmt: skip
    assert isinstance(statistics.moments, SampledMoments if wide else DenseMoments)
    difference = (run(noisy, rounded) - run(x, weight)).square().sum(1).mean()
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
    torch.testing.assert_close(dense(statistics).gram, dense(statistics).cross)
