from __future__ import annotations

import pytest
import torch
from torch import nn

from quantinel.detectors import weight_residuals
from quantinel.model.graph import FloatGraph, trace
from quantinel.quantization.ranges import weight_scales
from quantinel.quantization.scheme import parse_scheme

INT8 = parse_scheme("int8")


def network(seed: int) -> FloatGraph:
    torch.manual_seed(seed)
    return trace(nn.Sequential(nn.Conv2d(3, 64, 5), nn.Flatten(), nn.Linear(64 * 16, 20)).eval(), (3, 8, 8))


@pytest.mark.parametrize("seed", range(3))
def test_natural_weights_are_uniform_between_grid_points(seed: int) -> None:
    found = weight_residuals(network(seed), INT8)
    assert found.edge_share == pytest.approx(0.01, abs=0.003)
    assert found.placebo_edge_share == pytest.approx(0.01, abs=0.003)
    assert float(found.grid.sum()) == pytest.approx(1.0, abs=1e-3)


def test_projected_weights_crowd_on_the_attacked_grid_only() -> None:
    graph = network(0)
    for layer in graph.layers:
        weight = graph.weight(layer)
        scale = weight_scales(weight, INT8).reshape(-1, *[1] * (weight.ndim - 1))
        codes = torch.round(weight / scale)
        pushed = torch.where(torch.rand(weight.shape) < 0.5, (codes + 0.499) * scale, weight)
        weight.copy_(torch.where(pushed.abs() < weight.abs().flatten(1).amax(1).reshape(scale.shape), pushed, weight))
    found = weight_residuals(graph, INT8)
    assert found.edge_share > 0.3
    assert found.placebo_edge_share < 0.03
    assert min(found.by_layer.values()) > 0.3
    assert weight_residuals(graph, parse_scheme("int8-full")).edge_share < 0.1
