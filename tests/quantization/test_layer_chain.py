"""What the released methods train: a layer up to the next activation quantizer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch
from tests.support import SHAPE, randomise
from torch import Tensor, nn

from quantinel.data.images import ImageSet
from quantinel.defenses import Invariant, Reflect
from quantinel.defenses.chain_training import Reconstruction
from quantinel.model.graph import trace
from quantinel.quantization.calibration import calibrate
from quantinel.quantization.layer_problem import LayerProblem, Needs, RoundingMethod
from quantinel.quantization.reconstruction import choose_codes
from quantinel.quantization.rounding import dequantize
from quantinel.quantization.scheme import parse_scheme


@dataclass(frozen=True)
class Recorder(RoundingMethod):
    """Nearest rounding that keeps the problems."""

    problems: list[LayerProblem] = field(default_factory=list)
    name: ClassVar[str] = "recorder"
    needs: ClassVar[Needs] = "activations"

    def choose(self, problem: LayerProblem) -> Tensor:
        """Nearest codes."""
        self.problems.append(problem)
        return nearest(problem)


def nearest(problem: LayerProblem) -> Tensor:
    """Codes of nearest rounding."""
    return torch.where(problem.cell.nearest_is_ceil, problem.cell.ceil, problem.cell.floor).to(torch.int8)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    head = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU())
    middle = nn.Sequential(nn.Conv2d(6, 5, 3), nn.BatchNorm2d(5))
    module = nn.Sequential(head, middle, nn.Conv2d(5, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 3))
    randomise(module)
    return module.eval()


@pytest.mark.parametrize("folded", [True, False])
def test_chains_end_where_the_next_layer_begins(network: nn.Module, folded: bool, images: ImageSet) -> None:
    """Regression: with BatchNorm left in place, a chain was the bare convolution."""
    graph = trace(network, SHAPE, fold_batch_norm=folded)
    ranges = calibrate(graph, images, parse_scheme("int4"))
    method = Recorder()
    choose_codes(graph, ranges, method)
    shown = images.as_float()
    ends = [3, 5, 7]  # behind ReLU, behind BatchNorm without one, behind a bare layer with ReLU
    children = [*network[0], *network[1], *network[2:]]  # type: ignore[index, misc]
    for problem, following, end in zip(method.problems, method.problems[1:], ends, strict=False):
        assert problem.chain is not None
        assert following.chain is not None
        with torch.no_grad():
            expected = nn.Sequential(*children[:end])(shown)
            ours = problem.chain.forward(problem.chain.inputs, dequantize(nearest(problem), problem.scale))
        torch.testing.assert_close(problem.chain.targets, expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(ours.reshape(following.chain.inputs.shape), following.chain.inputs)


def test_gradients_pass_through_a_batch_norm_left_in_place(network: nn.Module, images: ImageSet) -> None:
    graph = trace(network, SHAPE, fold_batch_norm=False)
    method = Recorder()
    with torch.inference_mode():
        choose_codes(graph, calibrate(graph, images, parse_scheme("int4")), method)
    for problem in method.problems[:2]:
        assert problem.chain is not None
        with torch.inference_mode(False), torch.enable_grad():
            reconstruction, everything = Reconstruction.of(problem.chain), torch.arange(len(images))
            rounded = dequantize(nearest(problem), problem.scale).clone().requires_grad_()
            loss = reconstruction.loss(rounded, everything)
            (gradient,) = torch.autograd.grad(loss, rounded)
            stepped = rounded.detach() - 0.2 * loss.detach() / gradient.square().sum() * gradient
            assert reconstruction.loss(stepped, everything) < loss


def test_relative_errors_of_two_methods_are_of_the_same_energy(network: nn.Module, images: ImageSet) -> None:
    """Regression: with stamped copies, errors on bare images were divided by the energy of bare and stamped ones."""
    graph = trace(network, SHAPE)
    ranges = calibrate(graph, images, parse_scheme("int4"))
    first = [
        choose_codes(graph, ranges, method, max_positions=10**6)[1][0]
        for method in (Invariant(search=False), Reflect())
    ]
    assert first[0].error_nearest == pytest.approx(first[1].error_nearest, rel=1e-3)
