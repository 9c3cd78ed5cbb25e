"""What every registered detector that needs no images must keep."""

from __future__ import annotations

import math

import pytest
import torch

from quantinel.detectors import DETECTORS, Detection
from quantinel.detectors.subject import Subject
from quantinel.errors import NotAssessable
from quantinel.model.graph import FloatGraph
from quantinel.quantization.scheme import parse_scheme

NAMES = [name for name, detector in DETECTORS.items() if detector.needs == "weights"]


def run(name: str, graph: FloatGraph, scheme: str = "int8") -> Detection | None:
    detector = DETECTORS[name]
    try:
        return detector.run(Subject(graph, parse_scheme(scheme), None, 3), detector.config())
    except NotAssessable:
        return None


@pytest.mark.parametrize("scheme", ["int8", "int4", "int2", "int8-full", "int8-per-tensor", "int4-weight-mse"])
@pytest.mark.parametrize("name", NAMES)
def test_figures_are_numbers_for_every_scheme(name: str, scheme: str, odd_graph: FloatGraph) -> None:
    found = run(name, odd_graph, scheme)
    if found is None:
        return
    assert math.isfinite(found.score)
    assert all(math.isfinite(value) for value in (*found.statistics.values(), *found.by_layer.values()))
    assert found.p_value is None or 0.0 <= found.p_value <= 1.0
    assert set(found.by_layer) <= {layer.name for layer in odd_graph.layers}
    assert all(bool(torch.isfinite(tensor).all()) for tensor in found.tensors.values())


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_and_touches_nothing(name: str, odd_graph: FloatGraph) -> None:
    before = {layer.name: odd_graph.weight(layer).clone() for layer in odd_graph.layers}
    state = torch.random.get_rng_state()
    first, second = run(name, odd_graph), run(name, odd_graph)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(before[layer.name], odd_graph.weight(layer)) for layer in odd_graph.layers)
    assert (first is None) == (second is None)
    if first is not None and second is not None:
        assert (first.score, first.statistics, first.p_value) == (second.score, second.statistics, second.p_value)
