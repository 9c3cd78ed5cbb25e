from __future__ import annotations

import pytest
import torch
from tests.support import SHAPE, OddNet
from torch import nn

from quantinel.detectors.pruning_influence import PruningInfluence, detect, readers
from quantinel.detectors.subject import Subject
from quantinel.errors import NotAssessable, UsageError
from quantinel.model.graph import FloatGraph, trace
from quantinel.quantization.pruning import parse_pruning
from quantinel.quantization.scheme import parse_scheme


def network(inverted: bool) -> FloatGraph:
    """Two convolutions with BatchNorm; gamma grows with the norm of the filter, or falls."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, norm, second = nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.Conv2d(64, 8, 1)
        sizes = torch.linspace(0.2, 2.0, 64)
        with torch.no_grad():
            first.weight.mul_(sizes.reshape(-1, 1, 1, 1))
            norm.weight.copy_(sizes.flip(0) if inverted else sizes)
        head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
        return trace(nn.Sequential(first, norm, nn.ReLU(), second, head).eval(), (3, 6, 6))


def subject(graph: FloatGraph, *pruning: str) -> Subject:
    return Subject(graph, parse_scheme("int8"), None, 0, tuple(parse_pruning(name) for name in pruning))


def test_inverted_influence_is_found() -> None:
    found = detect(subject(network(inverted=True)), PruningInfluence())
    assert found.p_value is not None
    assert found.p_value < 1e-6
    assert found.score > 0.4
    assert found.statistics["rate"] == 0.3
    assert "0.influence" in found.tensors


def test_ordinary_influence_passes() -> None:
    found = detect(subject(network(inverted=False)), PruningInfluence())
    assert found.p_value == pytest.approx(1.0)
    assert found.score < -0.4


def test_the_rates_of_the_subject_are_used() -> None:
    graph = network(inverted=True)
    found = detect(subject(graph, "prune-l1-filters-0.5", "prune-magnitude-0.2"), PruningInfluence())
    assert found.statistics["rate"] == 0.5


def test_filters_that_are_gone_are_left_out() -> None:
    graph = network(inverted=False)
    graph.weight(graph.layers[0])[::2] = 0.0
    found = detect(subject(graph), PruningInfluence())
    assert found.p_value is not None
    assert found.p_value > 0.99


def test_readers_follow_channels_only() -> None:
    graph = trace(OddNet().eval(), SHAPE)
    by_name = {layer.name: layer for layer in graph.layers}
    assert {layer.name for layer in readers(graph, by_name["stem"])} == {"grouped", "depthwise"} - {"grouped"}
    assert readers(graph, by_name["depthwise"]) == []  # behind a concatenation a channel is another one


def test_too_few_filters_are_not_judged() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 16, 3)).eval()
    with pytest.raises(NotAssessable):
        detect(subject(trace(module, (3, 6, 6))), PruningInfluence())
    with pytest.raises(UsageError):
        PruningInfluence(rate=1.5)
