from __future__ import annotations

import inspect

import pytest
import torch
from tests.defenses.support import correlated, problem
from torch import nn

from quantinel.cli.harden import harden
from quantinel.data.images import ImageSet
from quantinel.defenses import DEFAULT_ROUNDING, EFRAP, Reflect
from quantinel.errors import UsageError
from quantinel.model.graph import FloatGraph, trace
from quantinel.quantization.calibration import calibrate
from quantinel.quantization.moments import DenseMoments, Moments, SampledMoments
from quantinel.quantization.reconstruction import choose_codes
from quantinel.quantization.rounding import rounding_cell
from quantinel.quantization.scheme import parse_scheme
from quantinel.quantization.statistics import InputStatistics


def test_without_a_budget_it_is_reconstruction(odd_graph: FloatGraph, images: ImageSet) -> None:
    ranges = calibrate(odd_graph, images, parse_scheme("int4"))
    reflected, _ = choose_codes(odd_graph, ranges, Reflect(budget=0.0, bias_correction=False))
    plain, _ = choose_codes(odd_graph, ranges, EFRAP(flip_weight=0.0))
    assert all(torch.equal(reflected.codes[name], plain.codes[name]) for name in plain.codes)


def along_the_error(graph: FloatGraph, images: ImageSet, method: Reflect | EFRAP) -> float:
    """Mean of (V - W) R / R^2 over weights: 1 at nearest rounding, negative beyond the float weights."""
    ranges = calibrate(graph, images, parse_scheme("int4"))
    model, _ = choose_codes(graph, ranges, method)
    dot = energy = 0.0
    for layer in model.layers.values():
        weight = graph.weight(layer.layer)
        cell = rounding_cell(weight, layer.scale, model.scheme)
        residual = cell.nearest * layer.scale.reshape(-1, *[1] * (weight.ndim - 1)) - weight
        dot += float(((layer.weight() - weight) * residual).sum())
        energy += float(residual.square().sum())
    return dot / energy


def test_a_longer_reach_leans_further_from_the_rounding_error(odd_graph: FloatGraph, images: ImageSet) -> None:
    methods = [Reflect(budget=1e9, reach=reach, bias_correction=False) for reach in (0.0, 0.4, 1.0)]
    leaning = [along_the_error(odd_graph, images, method) for method in methods]
    assert leaning[0] > leaning[1] > leaning[2]
    assert leaning[2] < 0.0


def test_the_command_line_has_the_same_default() -> None:
    assert inspect.signature(harden).parameters["rounding"].default == DEFAULT_ROUNDING


def test_the_lean_is_bounded_by_the_layers_output_energy(images: ImageSet) -> None:
    torch.manual_seed(0)
    graph = trace(nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 8)), (3, 16, 16))
    ranges = calibrate(graph, images, parse_scheme("int2"))
    _, (near,) = choose_codes(graph, ranges, EFRAP(flip_weight=0.0))
    _, (wide,) = choose_codes(graph, ranges, Reflect(budget=1e9, bias_correction=False))
    _, (bounded,) = choose_codes(graph, ranges, Reflect(budget=1e-4, bias_correction=False))
    assert near.error_chosen is not None
    assert wide.error_chosen is not None
    assert bounded.error_chosen is not None
    assert bounded.error_chosen < wide.error_chosen
    # |V x - W x| <= |V x - W* x| + |W* x - W x|: reconstruction's own error and the budget
    assert bounded.error_chosen**0.5 <= 2 * near.error_chosen**0.5 + 1e-4**0.5


@pytest.mark.parametrize("scheme", ["int8-dynamic", "int4-weight-only"])
def test_float_biases_are_corrected_too(scheme: str, odd_graph: FloatGraph, images: ImageSet) -> None:
    ranges = calibrate(odd_graph, images, parse_scheme(scheme))
    model, _ = choose_codes(odd_graph, ranges, Reflect())
    assert all(layer.bias_codes is None for layer in model.layers.values())
    with_bias = {layer.name for layer in odd_graph.layers if layer.bias is not None}
    assert {name for name, layer in model.layers.items() if layer.float_bias is not None} == with_bias


def test_weights_on_the_grid_stay(images: ImageSet) -> None:
    graph = trace(nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4)), (3, 16, 16))
    with torch.no_grad():
        for layer in graph.layers:
            graph.weight(layer).copy_(torch.randint(-127, 128, graph.weight(layer).shape).float() / 127)
            graph.weight(layer)[:, 0] = 1.0
    ranges = calibrate(graph, images, parse_scheme("int8"))
    model, outcomes = choose_codes(graph, ranges, Reflect())
    assert [outcome.changed for outcome in outcomes] == [0.0]
    assert torch.equal(model.codes[graph.layers[0].name][:, 0], torch.full((4,), 127, dtype=torch.int8))


@pytest.mark.parametrize("name", ["budget", "reach", "damping"])
def test_options_are_checked(name: str) -> None:
    with pytest.raises(UsageError, match=name):
        Reflect(**{name: -1.0})  # type: ignore[arg-type]


@pytest.mark.parametrize("owing", [False, True])
@pytest.mark.parametrize("sampled", [False, True])
def test_the_lean_is_measured_on_the_inputs_alone(sampled: bool, owing: bool) -> None:
    """Neither what a residual connection owes nor the form of the moments has a part in lambda."""
    inputs, weight = correlated(60, 40), torch.randn(5, 40, generator=torch.Generator().manual_seed(2))
    rows, owed = inputs[None], 3 * torch.randn(1, 60, 5, generator=torch.Generator().manual_seed(3))
    gram = rows.transpose(1, 2) @ rows / 60
    moments: Moments = DenseMoments(gram=gram, drift=-owed.transpose(1, 2) @ rows / 60 if owing else None)
    if sampled:
        moments = SampledMoments(rows=rows, drift=-owed.transpose(1, 2) if owing else None)
    energy = float((inputs @ weight.T).square().sum(1).mean())
    made = problem(weight, 0.4, 4, statistics=InputStatistics(moments, 0.0, energy, 60))
    share = float((inputs @ made.rounding_error().T).square().sum(1).mean()) / energy
    assert Reflect(budget=0.0).reflection(made) == 0.0
    assert Reflect(budget=share / 4).reflection(made) == pytest.approx(0.5, rel=1e-3)
    assert Reflect(budget=2 * share).reflection(made) == 1.0


def test_wide_layers_lean_like_narrow_ones() -> None:
    inputs, weight = correlated(300, 40), torch.randn(5, 40, generator=torch.Generator().manual_seed(2))
    energy, gram = float((inputs @ weight.T).square().sum(1).mean()), inputs.T @ inputs / 300
    both: list[Moments] = [DenseMoments(gram=gram[None]), SampledMoments(rows=inputs[None])]
    problems = [problem(weight, 0.4, 4, statistics=InputStatistics(moments, 0.0, energy, 300)) for moments in both]
    dense, wide = (Reflect(budget=1e9, damping=1e-4).choose(made) for made in problems)
    assert (dense == wide).float().mean() > 0.97
    straight = Reflect(budget=0.0, damping=1e-4).choose(problems[1])
    assert (straight != wide).float().mean() > 0.1
