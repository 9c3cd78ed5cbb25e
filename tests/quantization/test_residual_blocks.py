"""Reconstruction of residual blocks: the last layer makes up for what the connection lacks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tests.defenses.support import Weighing
from tests.support import SHAPE
from torch import Tensor, nn

from quantinel.data.images import ImageSet
from quantinel.defenses import EFRAP, Invariant, Reflect
from quantinel.model.graph import FloatGraph, trace
from quantinel.quantization.calibration import calibrate
from quantinel.quantization.nodes import residual_connection
from quantinel.quantization.reconstruction import BlockOption, choose_codes
from quantinel.quantization.scheme import parse_scheme


class Residual(nn.Module):
    """A stem, a block with an identity, one with a projection that comes last, and a sum of two pools."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.first, self.second = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.third, self.project = nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(8, 12, 1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.second(F.relu(self.first(x))))
        x = F.relu(self.third(x) + self.project(x))
        return self.head(x.mean((2, 3)) + x.amax((2, 3)))


@pytest.fixture(scope="module")
def graph() -> FloatGraph:
    return trace(Residual().eval(), SHAPE)


def test_connections_are_found_where_a_layer_is_all_that_is_added(graph: FloatGraph) -> None:
    found = {layer.name: residual_connection(graph.node(layer.node)) is not None for layer in graph.layers}
    assert found == {
        "stem": False, "first": False, "second": True, "third": True, "project": True, "head": False,
    }  # fmt: skip


def block_error(graph: FloatGraph, images: ImageSet, method: BlockOption) -> float:
    """Mean squared error of what the first block passes on, before the ReLU."""
    model, _ = choose_codes(graph, calibrate(graph, images, parse_scheme("int3")), method)
    x = images.as_float()
    weights = {layer.name: graph.weight(layer) for layer in graph.layers}
    biases = {layer.name: graph.bias(layer) for layer in graph.layers}

    def sums(values: dict[str, Tensor]) -> Tensor:
        def convolved(name: str, inputs: Tensor) -> Tensor:
            return F.conv2d(inputs, values[name], biases[name], padding=1)

        stem = F.relu(convolved("stem", x))
        return stem + convolved("second", F.relu(convolved("first", stem)))

    chosen = {name: layer.weight() for name, layer in model.layers.items()}
    return float((sums(chosen) - sums(weights)).square().mean())


def test_the_last_layer_of_a_block_reproduces_the_block(graph: FloatGraph, images: ImageSet) -> None:
    alone = EFRAP(flip_weight=0.0)
    assert block_error(graph, images, EFRAP(flip_weight=0.0, blocks=True)) < block_error(graph, images, alone)


@pytest.mark.parametrize("method", [EFRAP(blocks=True), Reflect(blocks=True), Invariant(blocks=True)])
def test_every_closed_form_takes_the_option(method: BlockOption, graph: FloatGraph, images: ImageSet) -> None:
    ranges = calibrate(graph, images, parse_scheme("int4"))
    model, outcomes = choose_codes(graph, ranges, method)
    plain, _ = choose_codes(graph, ranges, type(method)())
    assert any(not torch.equal(model.codes[name], plain.codes[name]) for name in plain.codes)
    for name in ("stem", "first"):
        assert torch.equal(model.codes[name], plain.codes[name])
    assert all(outcome.error_chosen is not None for outcome in outcomes)


@pytest.mark.parametrize("method", [EFRAP(blocks=True), Invariant(bank=False, search=False, blocks=True)])
def test_reported_errors_are_the_layers_own(method: BlockOption, graph: FloatGraph, images: ImageSet) -> None:
    """Regression: with one copy of the images they were errors of the sum, with several the layer's own."""
    ranges = calibrate(graph, images, parse_scheme("int4-weight-only"))
    model, outcomes = choose_codes(graph, ranges, method, bias_correction=False)
    x = images.as_float()

    def outputs(weights: dict[str, Tensor]) -> Tensor:
        inputs = x
        for layer in graph.layers[:2]:
            inputs = F.relu(F.conv2d(inputs, weights[layer.name], graph.bias(layer), padding=1))
        return F.conv2d(inputs, weights["second"], padding=1)

    floating = {layer.name: graph.weight(layer) for layer in graph.layers}
    chosen = {name: layer.weight() for name, layer in model.layers.items()}
    expected = outputs(floating)
    error = float((outputs(chosen) - expected).square().mean() / expected.square().mean())
    (reported,) = (outcome.error_chosen for outcome in outcomes if outcome.layer == "second")
    assert reported == pytest.approx(error, rel=0.02)


def test_what_a_connection_owes_counts_by_the_weight_of_its_copy(graph: FloatGraph, images: ImageSet) -> None:
    ranges = calibrate(graph, images, parse_scheme("int4"))
    bare, faint, full = (
        torch.cat(
            [codes.flatten() for codes in choose_codes(graph, ranges, method, max_positions=1 << 20)[0].codes.values()]
        )
        for method in (
            Invariant(bank=False, search=False, blocks=True),
            Weighing(search=False, blocks=True, weight=1e-9),
            Invariant(search=False, blocks=True),
        )
    )
    assert (faint != bare).float().mean() < 0.01 < (full != bare).float().mean()


def test_where_nothing_is_added_nothing_changes(images: ImageSet) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(4 * 144, 3))
    graph = trace(module, SHAPE)
    ranges = calibrate(graph, images, parse_scheme("int4"))
    model, _ = choose_codes(graph, ranges, EFRAP(blocks=True))
    plain, _ = choose_codes(graph, ranges, EFRAP())
    assert all(torch.equal(model.codes[name], plain.codes[name]) for name in plain.codes)
