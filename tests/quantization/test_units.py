"""Layers scaled against each other: the same network, and the same codes."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.support import SHAPE
from torch import Tensor, nn

from quantinel.data.images import ImageSet
from quantinel.defenses import EFRAP, GPTQ, EFRAPReleased, Invariant, Reflect
from quantinel.errors import UsageError
from quantinel.model.graph import trace
from quantinel.quantization.calibration import calibrate
from quantinel.quantization.layer_problem import LayerOutcome, RoundingMethod
from quantinel.quantization.reconstruction import choose_codes
from quantinel.quantization.scheme import parse_scheme
from quantinel.quantization.units import unit


def rescaled(network: nn.Sequential, exponent: int) -> nn.Sequential:
    """Two layers with a ReLU between them, the first times a power of two and the second divided by it."""
    network = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in network[0].parameters():
            parameter.mul_(2.0**exponent)
        network[2].weight.mul_(2.0**-exponent)  # type: ignore[operator]
    return network


def chosen(
    network: nn.Module, images: ImageSet, method: RoundingMethod
) -> tuple[dict[str, Tensor], list[LayerOutcome]]:
    graph = trace(network, SHAPE)
    model, outcomes = choose_codes(graph, calibrate(graph, images, parse_scheme("int4")), method)
    return model.codes, outcomes


@pytest.fixture(scope="module")
def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(864, 4)).eval()


@pytest.mark.parametrize("exponent", [-83, -30, 30, 83])
@pytest.mark.parametrize(
    "method", [Invariant(search=False), Reflect(), EFRAP(), GPTQ(), GPTQ(target="float")], ids=lambda each: each.name
)
def test_codes_do_not_depend_on_how_layers_are_scaled(
    network: nn.Sequential, method: RoundingMethod, exponent: int, images: ImageSet
) -> None:
    """Regression: at 1e25 the second moments were inf, codes stayed nearest, and the verdict was PASS."""
    usual, before = chosen(network, images, method)
    codes, outcomes = chosen(rescaled(network, exponent), images, method)
    assert any(outcome.changed > 0 for outcome in before)
    for name, code in usual.items():
        assert torch.equal(codes[name], code)
    for one, other in zip(before, outcomes, strict=True):
        assert other.error_nearest == pytest.approx(one.error_nearest, rel=1e-4)
        assert other.error_chosen == pytest.approx(one.error_chosen, rel=1e-4)


@pytest.mark.parametrize(("exponent", "layer"), [(83, 0), (-83, 2)])
def test_methods_that_train_refuse_them(network: nn.Sequential, exponent: int, layer: int, images: ImageSet) -> None:
    with pytest.raises(UsageError, match=rf"layer {layer} are larger than those of any .*choose a method"):
        chosen(rescaled(network, exponent), images, EFRAPReleased(iterations=2))


def test_branches_that_decayed_to_nothing_are_no_reason_to_refuse(network: nn.Sequential, images: ImageSet) -> None:
    decayed = copy.deepcopy(network)
    with torch.no_grad():
        decayed[2].weight.mul_(1e-20)  # type: ignore[operator]
    chosen(decayed, images, EFRAPReleased(iterations=2))


def test_units_are_powers_of_two_of_sizes_that_need_one() -> None:
    for ordinary in (0.0, 1e-6, 1.0, 1e6):
        assert unit(torch.tensor([ordinary, -ordinary])) == 1.0
    for odd in (1e-30, 1e-8, 1e8, 1e30):
        factor = unit(torch.tensor([0.1 * odd, -odd]))
        assert 0.5 <= odd * factor < 1
        assert torch.log2(torch.tensor(factor)) % 1 == 0
    assert unit(torch.tensor([1.0]), torch.tensor([-1e30])) < 1e-29
    assert unit(torch.tensor([torch.nan])) == 1.0
