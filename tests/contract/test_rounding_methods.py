"""What every registered rounding method must keep, on a network with every kind of layer."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from quantinel.data.images import ImageSet
from quantinel.defenses import DEFENSES, EFRAPReleased
from quantinel.model.graph import FloatGraph
from quantinel.quantization.calibration import calibrate
from quantinel.quantization.reconstruction import RoundingMethod, choose_codes
from quantinel.quantization.rounding import rounding_cell
from quantinel.quantization.scheme import parse_scheme


def quick(name: str) -> RoundingMethod:
    """The method with its defaults, iterations cut where it has any."""
    method = DEFENSES[name].build()
    return dataclasses.replace(method, iterations=20) if isinstance(method, EFRAPReleased) else method


@pytest.mark.parametrize("scheme", ["int8", "int4", "int3-per-tensor", "int8-full", "int4-weight-only", "int8-dynamic"])
@pytest.mark.parametrize("name", DEFENSES)
def test_codes_stay_in_their_cells(name: str, scheme: str, odd_graph: FloatGraph, images: ImageSet) -> None:
    ranges = calibrate(odd_graph, images, parse_scheme(scheme))
    model, outcomes = choose_codes(odd_graph, ranges, quick(name))
    assert [outcome.layer for outcome in outcomes] == [layer.name for layer in odd_graph.layers]
    for layer in model.layers.values():
        cell = rounding_cell(odd_graph.weight(layer.layer), layer.scale, model.scheme)
        codes = layer.codes.float()
        assert ((codes == cell.floor) | (codes == cell.ceil)).all(), layer.layer.name
        assert codes.abs().max() <= model.scheme.code_max + (model.scheme.grid == "full")
    assert torch.isfinite(model.simulate()(images.as_float())).all()


@pytest.mark.parametrize("name", DEFENSES)
def test_same_seed_same_codes(name: str, odd_graph: FloatGraph, images: ImageSet) -> None:
    ranges = calibrate(odd_graph, images, parse_scheme("int4"))
    first, _ = choose_codes(odd_graph, ranges, quick(name), max_positions=500, seed=3)
    second, _ = choose_codes(odd_graph, ranges, quick(name), max_positions=500, seed=3)
    assert all(torch.equal(first.codes[layer], second.codes[layer]) for layer in first.codes)


@pytest.mark.parametrize("name", DEFENSES)
def test_float_weights_and_global_seed_are_untouched(name: str, odd_graph: FloatGraph, images: ImageSet) -> None:
    before = {layer.name: odd_graph.weight(layer).clone() for layer in odd_graph.layers}
    state = torch.random.get_rng_state()
    choose_codes(odd_graph, calibrate(odd_graph, images, parse_scheme("int4")), quick(name))
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(before[layer.name], odd_graph.weight(layer)) for layer in odd_graph.layers)


@pytest.mark.parametrize("name", [name for name in DEFENSES if DEFENSES[name].build().needs == "weights"])
def test_methods_without_data_report_no_errors(name: str, odd_graph: FloatGraph, images: ImageSet) -> None:
    _, outcomes = choose_codes(odd_graph, calibrate(odd_graph, images, parse_scheme("int8")), quick(name))
    assert all(outcome.error_nearest is None for outcome in outcomes)


def test_fewer_images_when_activations_would_not_fit(odd_graph: FloatGraph, images: ImageSet) -> None:
    ranges = calibrate(odd_graph, images, parse_scheme("int8"))
    largest = 8 * 16 * 16 * 4
    _, outcomes = choose_codes(odd_graph, ranges, DEFENSES["efrap"].build(), memory=10 * largest)
    assert {outcome.images for outcome in outcomes} == {10}
    _, outcomes = choose_codes(odd_graph, ranges, DEFENSES["efrap"].build())
    assert {outcome.images for outcome in outcomes} == {len(images)}
