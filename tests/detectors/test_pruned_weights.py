from __future__ import annotations

import pytest
import torch
from torch import nn

from quantinel.data.images import ImageSet
from quantinel.detectors import DETECTORS, Subject
from quantinel.detectors.pruned_weights import Pruning
from quantinel.detectors.pruning_divergence import _off_line
from quantinel.errors import NotAssessable, UsageError
from quantinel.inversion.answers import answers
from quantinel.model.graph import trace
from quantinel.quantization.pruning import parse_pruning, prune
from quantinel.quantization.scheme import parse_scheme

NAMES = ("prune-l1-filters-0.3", "prune-magnitude-0.5", "prune-magnitude-per-layer-0.5")


def module() -> nn.Sequential:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(8)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 4))
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(-2, 2, 8))
        norm.bias.normal_()
        assert norm.running_mean is not None
        norm.running_mean.normal_()
    return network.eval()


def images() -> ImageSet:
    pixels = torch.randint(0, 256, (16, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return ImageSet(pixels, None, "noise")


def require_pruned_alike(network: nn.Module, name: str) -> None:
    """The folded network with the detector's weights answers like the module that the pruner pruned."""
    scheme, graph = parse_pruning(name), trace(network, (3, 8, 8))
    pruning = Pruning.of(graph, scheme)
    assert pruning is not None
    pictures = images().as_float()
    with torch.no_grad():
        expected = prune(network, scheme)(pictures)
    torch.testing.assert_close(answers(graph, pictures, pruning.weights()), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_prunes_the_folded_network_as_the_pruner_prunes_the_module(name: str) -> None:
    require_pruned_alike(module(), name)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kernel", [1, 6])
def test_a_convolution_of_the_logits_is_pruned_as_one(name: str, kernel: int) -> None:
    """Its filters are rows of a matrix in the folded network."""
    torch.manual_seed(0)
    pool, head = nn.AdaptiveAvgPool2d(kernel), nn.Conv2d(8, 4, kernel)
    require_pruned_alike(nn.Sequential(nn.Conv2d(3, 8, 3), pool, head, nn.Flatten()).eval(), name)


class OutOfOrder(nn.Module):
    """Layers that are defined in another order than they run in, one of them called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(128, 4)
        self.twice = nn.Conv2d(8, 8, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(8)])
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.alias = self.twice

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for norm in self.norms:
            x = norm(self.twice(x)).relu()
        return self.head(x.flatten(1))


@pytest.mark.parametrize("name", ["prune-l1-filters-0.1_0.6", "prune-magnitude-per-layer-0.1_0.8_0.4", *NAMES])
def test_rates_belong_to_the_layers_of_the_pruner(name: str) -> None:
    """Regression: rates were given out in the order of execution, and a weight that two calls share was two layers."""
    torch.manual_seed(0)
    network = OutOfOrder().eval()
    for norm, scale in zip(network.norms, (0.5, 2.0), strict=True):
        nn.init.constant_(norm.weight, scale)  # type: ignore[arg-type]
    require_pruned_alike(network, name)


@pytest.mark.parametrize("name", NAMES)
def test_blurred_choices_remove_as_many_and_more_energy(name: str) -> None:
    pruning = Pruning.of(trace(module(), (3, 8, 8)), parse_pruning(name))
    assert pruning is not None
    plain, blurred = pruning.weights(), pruning.weights(0.5, torch.Generator().manual_seed(0))
    zeros = [sum(int((weight == 0).sum()) for weight in choice.values()) for choice in (plain, blurred)]
    assert zeros[0] == zeros[1]
    assert any(not torch.equal(plain[key], blurred[key]) for key in plain)


def test_a_point_is_judged_against_the_line_of_its_controls() -> None:
    xs = [0.0, 1.0, 2.0, 3.0, 4.0]
    ys = [0.1, 0.9, 2.1, 2.9, 4.1]
    assert abs(_off_line(-1.0, -1.0, xs, ys)) < 2
    assert _off_line(-1.0, -3.0, xs, ys) < -5
    assert _off_line(-1.0, 1.0, xs, ys) > 5


def test_what_is_zero_already_changes_nothing() -> None:
    scheme = parse_pruning("prune-l1-filters-0.3")
    graph = trace(prune(module(), scheme), (3, 8, 8))
    given = Subject(graph, parse_scheme("int8"), images(), 0, pruning=(scheme,))
    for name in ("pruning-divergence", "pruning-inversion"):
        found = DETECTORS[name].run(given, DETECTORS[name].config())
        assert (found.score, found.p_value) == (0.0, 1.0)


def test_a_network_that_cannot_be_pruned_so_is_not_judged() -> None:
    graph = trace(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)).eval(), (3, 8, 8))
    given = Subject(graph, parse_scheme("int8"), images(), 0, pruning=(parse_pruning("prune-l1-filters-0.3"),))
    with pytest.raises(NotAssessable, match="name another pruning"):
        DETECTORS["pruning-divergence"].run(given, DETECTORS["pruning-divergence"].config())
    wrong = parse_pruning("prune-l1-filters-0.3_0.3_0.3")
    with pytest.raises(UsageError, match="3 rates"):
        Pruning.of(trace(module(), (3, 8, 8)), wrong)
