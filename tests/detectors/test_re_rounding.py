from __future__ import annotations

import pytest
import torch
from torch import nn

from quantinel.data.images import ImageSet
from quantinel.detectors import DETECTORS, Subject
from quantinel.detectors.controls import compare, draw, smallest
from quantinel.inversion.budget import Budget
from quantinel.model.graph import FloatGraph, trace
from quantinel.quantization.ranges import weight_scales
from quantinel.quantization.scheme import parse_scheme

INT4 = parse_scheme("int4")


def network(seed: int) -> FloatGraph:
    torch.manual_seed(seed)
    return trace(
        nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 16, 6)
        ).eval(),
        (3, 8, 8),
    )


def subject(graph: FloatGraph) -> Subject:
    pixels = torch.randint(0, 256, (32, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Subject(graph, INT4, ImageSet(pixels, None, "noise"), 0)


def aligned(graph: FloatGraph, share: float, targets: list[int]) -> FloatGraph:
    """Rounding errors of the last layer that all raise some classes: weights moved to just below the next code."""
    layer = graph.layers[-1]
    weight = graph.weight(layer)
    scale = weight_scales(weight, INT4).reshape(-1, 1)
    chosen = torch.rand(weight.shape, generator=torch.Generator().manual_seed(3)) < share
    chosen[[row for row in range(len(weight)) if row not in targets]] = False
    moved = (torch.floor(weight / scale) + 0.52) * scale
    inside = moved.abs() < weight.abs().amax(1, keepdim=True) * 0.99
    weight.copy_(torch.where(chosen & inside, moved, weight))
    return graph


NAMES = ["re-rounding", "layer-coherence", "activation-drift"]


@pytest.mark.parametrize("name", NAMES)
def test_errors_that_add_up_are_found_and_chance_is_not(name: str) -> None:
    detector = DETECTORS[name]
    graph = aligned(network(0), 0.8, [4] if name == "re-rounding" else list(range(6)))
    attacked = detector.run(subject(graph), detector.config())
    harmless = [detector.run(subject(network(seed)), detector.config()) for seed in range(4)]
    assert attacked.p_value is not None
    assert attacked.p_value < 0.001
    assert all(found.p_value is not None and found.p_value > 0.002 for found in harmless)
    assert attacked.score > max(found.score for found in harmless)
    if name == "re-rounding":
        assert attacked.suspect_class == 4
    else:
        assert max(attacked.by_layer, key=attacked.by_layer.__getitem__) == "5"


def test_a_control_that_equals_the_others_is_nothing_special() -> None:
    assert compare(1.0, [1.0, 1.0, 1.0]).z == 0
    assert compare(1.0, [1.0, 1.0, 1.0]).p_value == 0.5
    found = compare(10.0, [0.9, 1.0, 1.1, 1.0])
    assert found.p_value < 0.001
    assert found.rank_p_value == 0.2
    assert smallest([0.5, 0.01]) == 0.02


def test_controls_are_cut_but_never_below_the_fewest() -> None:
    made, notes = draw(lambda: 1, 29, Budget(0.0))
    assert len(made) == 5
    assert "5 of 29" in notes[0]
    assert draw(lambda: 1, 3, Budget(0.0)) == ([1, 1, 1], [])
