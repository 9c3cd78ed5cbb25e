from __future__ import annotations

import math

import pytest
import torch
from tests.detectors.grids import (
    Change,
    cast,
    changed,
    coherent,
    crowded,
    herded,
    network,
    projected,
    pruned,
    rounded,
    subject,
)

from quantinel.detectors import DETECTORS, Detection
from quantinel.detectors.edge_atoms import EdgeAtoms
from quantinel.detectors.layer_residuals import BINS, PLACEBO_FACTORS, graph_residuals
from quantinel.detectors.significance import combined, discoveries, excess_over_placebos, p_of_excess
from quantinel.errors import NotAssessable, UsageError
from quantinel.model.graph import FloatGraph
from quantinel.quantization.scheme import parse_scheme

RESIDUAL_TESTS = ("edge-atoms", "residual-fit", "second-moment", "residual-coherence")


def detect(name: str, graph: FloatGraph, scheme: str = "int8") -> Detection:
    detector = DETECTORS[name]
    return detector.run(subject(graph, scheme), detector.config())


def p_value(name: str, graph: FloatGraph, scheme: str = "int8") -> float:
    found = detect(name, graph, scheme).p_value
    assert found is not None
    return found


# ---------------------------------------------------------------- the shared pass


def test_every_weight_is_counted_once_on_every_grid() -> None:
    graph = network()
    for layer, found in zip(graph.layers, graph_residuals(graph, parse_scheme("int8")), strict=True):
        assert found.counts.shape == (1 + len(PLACEBO_FACTORS), BINS)
        assert found.counts.sum(1).unique().tolist() == [found.weights]
        assert found.weights + found.left_out == graph.weight(layer).numel()
        assert found.left_out == len(graph.weight(layer))  # the largest weight of every channel
        assert float(found.rows.sum()) == found.weights


def test_folded_normalisation_does_not_change_residuals_per_channel() -> None:
    graph = network(norm=True)
    assert graph.batch_norms
    residuals = graph_residuals(graph, parse_scheme("int8"))
    weight = graph.weight(graph.layers[0])
    steps = (weight / (weight.abs().amax((1, 2, 3), keepdim=True) / 127)).flatten(1)
    expected = torch.where(steps.abs() < 126.999, steps - torch.round(steps), 0.0).sum(1)
    assert torch.allclose(residuals[0].sums[0].abs(), expected.abs(), atol=1e-3)


# ---------------------------------------------------------------- attacks are seen


@pytest.mark.parametrize("scheme", ["int8", "int4", "int8-full", "int8-per-tensor"])
@pytest.mark.parametrize("margin", [0.001, 0.01, 0.1])
def test_atoms_are_found_at_any_margin(margin: float, scheme: str) -> None:
    found = detect("edge-atoms", changed(network(), projected(0.05, margin), scheme), scheme)
    assert found.p_value is not None
    assert found.p_value < 1e-6
    assert found.score > 0.02
    assert found.statistics["margin"] == pytest.approx(margin, abs=0.0011)
    assert set(found.by_layer) == {"0", "2", "4"}
    assert float(found.tensors["grid"].sum()) == pytest.approx(1.0, abs=1e-4)


def test_atoms_are_on_the_attacked_grid_only() -> None:
    graph = changed(network(), projected(0.3, 0.001), "int8")
    assert p_value("edge-atoms", graph, "int8-full") > 1e-3
    assert p_value("edge-atoms", graph, "int4") > 1e-3


def test_fit_and_moment_see_atoms_and_centres() -> None:
    projected_graph, herded_graph = changed(network(), projected(0.3, 0.001)), changed(network(), herded)
    for name in ("residual-fit", "second-moment"):
        assert p_value(name, projected_graph) < 1e-6
        assert p_value(name, herded_graph) < 1e-6
    assert detect("second-moment", projected_graph).statistics["difference"] > 0.1
    assert detect("second-moment", herded_graph).statistics["difference"] < -0.5


def test_coherence_sees_what_histograms_do_not() -> None:
    graph = changed(network(), coherent)
    found = detect("residual-coherence", graph)
    assert found.p_value is not None
    assert found.p_value < 1e-6
    assert found.statistics["coherent_channels"] > 0.5 * found.statistics["channels"]
    assert p_value("edge-atoms", graph) > 1e-3


# ---------------------------------------------------------------- benign models are not


BENIGN: dict[str, Change] = {
    "natural": lambda weight, scheme, generator: weight,
    "bf16": cast(torch.bfloat16),
    "fp16": cast(torch.float16),
    "pruned": pruned(0.5),
    "pruned-hard": pruned(0.9),
}


@pytest.mark.parametrize("scheme", ["int8", "int4", "int3", "int8-per-tensor", "int4-weight-percentile"])
@pytest.mark.parametrize("name", BENIGN)
def test_benign_changes_leave_no_mark(name: str, scheme: str) -> None:
    for detector in (*RESIDUAL_TESTS, "block-outliers"):
        assert p_value(detector, changed(network(), BENIGN[name], scheme), scheme) > 1e-4, detector


def test_casts_after_folding_are_recognised() -> None:
    graph = network(norm=True)
    for layer in graph.layers:
        norm = graph.batch_norms.get(layer.name)
        factor = torch.ones(1) if norm is None else norm.factor.float()
        factor = factor.reshape(-1, *[1] * (graph.weight(layer).ndim - 1))
        graph.weight(layer).copy_((graph.weight(layer) / factor).bfloat16().float() * factor)
    assert {layer.significand_bits for layer in subject(graph).residuals} == {8}
    for detector in RESIDUAL_TESTS:
        assert p_value(detector, graph) > 1e-4


def test_smooth_crowding_is_no_atom() -> None:
    graph = changed(network(), crowded)
    assert p_value("second-moment", graph) < 1e-6  # quantization-aware training is seen
    assert p_value("edge-atoms", graph) > 1e-3  # and not taken for a projection


@pytest.mark.parametrize("before", ["int8", "int4", "int8-per-tensor"])
def test_models_that_were_quantized_before_are_not_judged(before: str) -> None:
    graph = changed(network(), rounded, before, largest_too=True)
    for name in RESIDUAL_TESTS:
        with pytest.raises(NotAssessable, match="already quantized"):
            detect(name, graph)
    found = detect("on-grid", graph, before)
    assert found.score > 0.95
    assert found.statistics["layers_quantized_before"] == 3


def test_a_cast_of_a_quantized_model_is_recognised() -> None:
    graph = changed(changed(network(), rounded), cast(torch.bfloat16))
    levels = [layer.levels for layer in subject(graph).residuals]
    assert all(level is not None and 120 <= level <= 130 for level in levels)


def test_part_of_the_layers_can_be_judged() -> None:
    graph = network()
    weight = graph.weight(graph.layers[0])
    weight.copy_(rounded(weight, parse_scheme("int8"), torch.Generator()))
    found = detect("residual-fit", graph)
    assert set(found.by_layer) == {"2", "4"}
    assert any("1 of 3 layers hold weights that were already quantized" in note for note in found.notes)


def test_natural_weights_are_on_the_grid_by_chance_only() -> None:
    assert abs(detect("on-grid", network()).score) < 0.01


def test_searched_scales_have_no_placebo() -> None:
    for name in ("residual-fit", "second-moment"):
        with pytest.raises(NotAssessable, match="edge-atoms"):
            detect(name, network(), "int4-weight-mse")
    assert p_value("edge-atoms", network(), "int4-weight-mse") > 1e-4


# ---------------------------------------------------------------- statistics


def test_p_values_of_placebos_hold_their_level() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(4000, 1 + len(PLACEBO_FACTORS), generator=generator)
    found = torch.tensor([p_of_excess(excess_over_placebos(row, 0.0), len(PLACEBO_FACTORS)) for row in values])
    assert float((found < 0.01).float().mean()) == pytest.approx(0.01, abs=0.006)
    assert float((found < 0.5).float().mean()) == pytest.approx(0.5, abs=0.03)


def test_residual_tests_hold_their_level_on_natural_networks() -> None:
    smallest = dict.fromkeys(RESIDUAL_TESTS, 1.0)
    for seed in range(12):
        graph = network(seed)
        for name in RESIDUAL_TESTS:
            smallest[name] = min(smallest[name], p_value(name, graph))
    assert min(smallest.values()) > 1e-4  # of 48 tests


def test_fisher_and_benjamini_hochberg() -> None:
    assert combined([]) == 1.0
    assert combined([0.5]) == pytest.approx(0.5)
    assert combined([0.0, 1.0]) < 1e-200
    assert discoveries(torch.tensor([0.001, 0.9, 0.02, 0.5]), 0.05).tolist() == [True, False, True, False]
    assert discoveries(torch.zeros(0), 0.05).tolist() == []


def test_options_are_checked() -> None:
    for margin in (0.0, 0.5, math.nan):
        with pytest.raises(UsageError):
            EdgeAtoms(margin)
