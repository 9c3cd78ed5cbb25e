"""What holds for every registered detector that reads images, on networks that are hard to judge."""

from __future__ import annotations

import dataclasses
import math
from itertools import count

import pytest
import torch
from torch import Tensor, nn

from quantinel.data.images import ImageSet
from quantinel.detectors import DETECTORS, Detection, Subject
from quantinel.errors import NotAssessable
from quantinel.inversion.budget import Budget
from quantinel.model.graph import FloatGraph, trace
from quantinel.quantization.ranges import weight_scales
from quantinel.quantization.rounding import dequantize, nearest_codes
from quantinel.quantization.scheme import QuantScheme, parse_scheme

BEHAVIOURAL = [detector for detector in DETECTORS.values() if detector.needs == "images"]
INT4 = parse_scheme("int4")


class Tokens(nn.Module):
    """Linear layers over positions, normalised: what a transformer is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.head = nn.Conv2d(3, 8, 4, stride=4), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        logits: Tensor = self.head(self.norm(tokens).mean(1))
        return logits


def convolutions(classes: int, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=groups), nn.ReLU(),
        nn.Flatten(), nn.Linear(8 * 36, classes),
    )  # fmt: skip


def network(name: str) -> FloatGraph:
    torch.manual_seed(1)
    module: nn.Module = Tokens() if name == "tokens" else convolutions(2 if name == "two classes" else 5)
    if name == "grouped":
        module = convolutions(5, groups=4)
    if name == "constant":
        assert isinstance(module, nn.Sequential)
        last = module[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
    graph = trace(module.eval(), (3, 8, 8))
    if name == "on grid":
        for layer in graph.layers:
            weight = graph.weight(layer)
            scale = weight_scales(weight, INT4)
            weight.copy_(dequantize(nearest_codes(weight, scale, INT4), scale))
    return graph


def subject(graph: FloatGraph, images: int = 16, budget: Budget | None = None, scheme: QuantScheme = INT4) -> Subject:
    pixels = torch.randint(0, 256, (images, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Subject(graph, scheme, ImageSet(pixels, None, "noise"), 0, budget=budget or Budget())


QUICK = {"steps": 12, "screening_steps": 12, "controls": 3}
"""Searches of a few steps."""


def run(name: str, given: Subject) -> Detection:
    config = DETECTORS[name].config
    names = {field.name for field in dataclasses.fields(config)}
    return DETECTORS[name].run(given, config(**{key: value for key, value in QUICK.items() if key in names}))


@pytest.mark.parametrize("kind", ["two classes", "grouped", "tokens", "constant"])
@pytest.mark.parametrize("name", [detector.name for detector in BEHAVIOURAL])
def test_judges_small_networks_and_repeats_itself(name: str, kind: str) -> None:
    if name == "neural-cleanse" and kind == "two classes":
        pytest.skip("outliers need three classes")
    graph = network(kind)
    before = {key: value.clone() for key, value in graph.module.state_dict().items()}
    first, second = run(name, subject(graph)), run(name, subject(graph))
    assert math.isfinite(first.score)
    assert first.p_value is None or 0 <= first.p_value <= 1
    assert all(math.isfinite(value) for value in first.statistics.values())
    assert set(first.by_layer) <= {layer.name for layer in graph.layers}
    assert set(first.by_class) <= set(range(graph.num_classes))
    assert first.score == second.score
    assert first.statistics == second.statistics
    assert not first.notes, "nothing was cut short"
    for key, value in graph.module.state_dict().items():
        assert torch.equal(before[key], value), f"{name} changed {key}"
    if kind == "constant":
        assert first.p_value is None or first.p_value > 0.01


ROUNDING = ["re-rounding", "layer-coherence", "activation-drift", "trigger-probing", "trigger-inversion"]


def test_detectors_share_the_rounding_errors_and_leave_them_as_they_are() -> None:
    shared = subject(network("grouped"))
    errors = shared.rounding_errors
    kept = {key: value.clone() for key, value in errors.errors.items()}
    for name in ROUNDING:
        alone = run(name, subject(network("grouped")))
        assert run(name, shared.within(Budget())).statistics == alone.statistics
    assert shared.within(Budget()).rounding_errors is errors
    assert all(torch.equal(errors.errors[key], value) for key, value in kept.items())


@pytest.mark.parametrize("name", ROUNDING)
def test_finds_nothing_where_rounding_changes_nothing(name: str) -> None:
    found = run(name, subject(network("on grid")))
    assert found.score == 0
    assert found.p_value == 1
    assert found.remarks


@pytest.mark.parametrize("scheme", ["int8-weight-only", "int8-dynamic", "int4-weight-percentile", "int8-per-tensor"])
@pytest.mark.parametrize("name", ["re-rounding", "layer-coherence", "activation-drift", "trigger-probing"])
def test_judges_every_kind_of_grid(name: str, scheme: str) -> None:
    found = run(name, subject(network("grouped"), scheme=parse_scheme(scheme)))
    assert math.isfinite(found.score)
    assert found.p_value is not None
    assert found.p_value > 1e-4


@pytest.mark.parametrize("name", [detector.name for detector in BEHAVIOURAL])
def test_needs_images(name: str) -> None:
    with pytest.raises(NotAssessable, match="--data"):
        run(name, Subject(network("grouped"), INT4, None, 0))


@pytest.mark.parametrize("name", [detector.name for detector in BEHAVIOURAL])
def test_a_budget_that_is_used_up_is_told(name: str) -> None:
    ticks = count()
    budget = Budget(0.5, clock=lambda: float(next(ticks)))
    try:
        found = run(name, subject(network("grouped"), budget=budget))
    except NotAssessable:
        return
    assert found.notes
    assert math.isfinite(found.score)
