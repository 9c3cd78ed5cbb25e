"""What every registered rounding method must keep, on a network with every kind of layer."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tests.support import SHAPE
from torch import nn

from quantinel.data.images import ImageSet
from quantinel.defenses import DEFENSES
from quantinel.errors import UnsupportedError
from quantinel.model.graph import FloatGraph, trace
from quantinel.quantization.calibration import calibrate
from quantinel.quantization.reconstruction import RoundingMethod, choose_codes
from quantinel.quantization.rounding import rounding_cell
from quantinel.quantization.scheme import parse_scheme


def quick(name: str) -> RoundingMethod:
    """The method with its defaults, iterations cut where it has any."""
    method = DEFENSES[name].build()
    fewer = {"iterations": 20, "pda_steps": 3}
    fields = {field.name for field in dataclasses.fields(method)}  # type: ignore[arg-type]
    return dataclasses.replace(method, **{key: fewer[key] for key in fewer if key in fields})  # type: ignore[type-var]


@pytest.mark.parametrize("scheme", ["int8", "int4", "int3-per-tensor", "int8-full", "int4-weight-only", "int8-dynamic"])
@pytest.mark.parametrize("name", DEFENSES)
def test_codes_stay_on_the_grid_and_in_their_cells(
    name: str, scheme: str, odd_graph: FloatGraph, images: ImageSet
) -> None:
    ranges = calibrate(odd_graph, images, parse_scheme(scheme))
    model, outcomes = choose_codes(odd_graph, ranges, quick(name))
    assert [outcome.layer for outcome in outcomes] == [layer.name for layer in odd_graph.layers]
    for layer in model.layers.values():
        cell = rounding_cell(odd_graph.weight(layer.layer), layer.scale, model.scheme)
        codes = layer.codes.float()
        if DEFENSES[name].adjacent:
            assert ((codes == cell.floor) | (codes == cell.ceil)).all(), layer.layer.name
        assert codes.min() >= model.scheme.code_min
        assert codes.max() <= model.scheme.code_max
    assert torch.isfinite(model.simulate()(images.as_float())).all()


@pytest.mark.parametrize("name", DEFENSES)
def test_same_seed_same_codes(name: str, odd_graph: FloatGraph, images: ImageSet) -> None:
    """With the largest seed that the command line takes, too."""
    ranges = calibrate(odd_graph, images, parse_scheme("int4"))
    first, _ = choose_codes(odd_graph, ranges, quick(name), max_positions=500, seed=(1 << 63) - 1)
    second, _ = choose_codes(odd_graph, ranges, quick(name), max_positions=500, seed=(1 << 63) - 1)
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


@pytest.mark.parametrize("name", DEFENSES)
def test_bias_correction_leaves_codes_on_the_grid_and_moves_biases(
    name: str, odd_graph: FloatGraph, images: ImageSet
) -> None:
    ranges = calibrate(odd_graph, images, parse_scheme("int4"))
    plain, _ = choose_codes(odd_graph, ranges, quick(name), bias_correction=False)
    method = dataclasses.replace(quick(name), bias_correction=True)  # type: ignore[type-var]
    corrected, outcomes = choose_codes(odd_graph, ranges, method)
    first = odd_graph.layers[0].name
    assert torch.equal(plain.codes[first], corrected.codes[first])
    assert not torch.equal(plain.layers[first].bias_codes, corrected.layers[first].bias_codes)  # type: ignore[arg-type]
    assert corrected.layers["head"].bias_codes is None
    assert all(outcome.images == len(images) for outcome in outcomes)
    for layer in corrected.layers.values():
        assert layer.codes.dtype == torch.int8
        assert layer.bias_codes is None or layer.bias_codes.dtype == torch.int32


def test_fewer_images_when_activations_would_not_fit(odd_graph: FloatGraph, images: ImageSet) -> None:
    ranges = calibrate(odd_graph, images, parse_scheme("int8"))
    largest = 8 * 16 * 16 * 4
    _, outcomes = choose_codes(odd_graph, ranges, DEFENSES["efrap"].build(), memory=10 * largest)
    assert {outcome.images for outcome in outcomes} == {10}
    _, outcomes = choose_codes(odd_graph, ranges, DEFENSES["efrap"].build())
    assert {outcome.images for outcome in outcomes} == {len(images)}


@pytest.mark.parametrize("name", [name for name in DEFENSES if DEFENSES[name].build().needs == "batch-norm"])
def test_methods_that_need_batch_norm_say_so(name: str, images: ImageSet) -> None:
    graph = trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, 5)), SHAPE)
    with pytest.raises(UnsupportedError, match="not applicable"):
        choose_codes(graph, calibrate(graph, images, parse_scheme("int8")), quick(name))


@pytest.mark.parametrize("scheme", ["int4-weight-only", "int8-dynamic"])
def test_bias_correction_leaves_no_integer_biases_where_there_were_none(
    scheme: str, odd_graph: FloatGraph, images: ImageSet
) -> None:
    ranges = calibrate(odd_graph, images, parse_scheme(scheme))
    model, _ = choose_codes(odd_graph, ranges, quick("nearest"), bias_correction=True)
    assert all(layer.bias_codes is None for layer in model.layers.values())
    assert any(layer.float_bias is not None for layer in model.layers.values())
