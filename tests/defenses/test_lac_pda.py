"""PDA: which statistics it matches, how far it moves inputs, and what LAC is then given."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tests.defenses.support import problem
from torch import Tensor, nn

from quantinel.data.images import ImageSet
from quantinel.defenses import LAC, LACPDA
from quantinel.defenses.lac_pda import mismatch
from quantinel.errors import UnsupportedError, UsageError
from quantinel.model.graph import trace
from quantinel.quantization.calibration import calibrate
from quantinel.quantization.layer_problem import Chain, LayerProblem
from quantinel.quantization.reconstruction import choose_codes
from quantinel.quantization.scheme import parse_scheme


def small_net() -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    convolution, norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
    convolution.weight.data = torch.randn(4, 3, 3, 3, generator=generator)
    convolution.bias.data = torch.randn(4, generator=generator)  # type: ignore[union-attr]
    norm.weight.data = torch.tensor([1.5, -0.7, 0.0, 0.4])
    norm.bias.data = torch.randn(4, generator=generator)
    norm.running_mean, norm.running_var = torch.randn(4, generator=generator), torch.rand(4, generator=generator) + 0.5
    return nn.Sequential(convolution, norm, nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2)).eval()


def layer_problem(inputs: Tensor, drift: float = 0.0) -> LayerProblem:
    """The folded first layer of the network; the float network's inputs are ``drift`` larger."""
    graph = trace(small_net(), (3, 6, 6))
    first = graph.layers[0]
    weight, bias = graph.weight(first), graph.bias(first)

    def layer(x: Tensor, w: Tensor) -> Tensor:
        return F.conv2d(x, w, bias, padding=1)

    floating = (1 + drift) * inputs
    chain = Chain(inputs, floating, layer(floating, weight).relu(), layer, 1, torch.relu)
    made = problem(weight, 0.1, chain=chain, batch_norm=graph.batch_norms[first.name])
    return replace(made, layer=first)


INPUTS = torch.rand(10, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def test_folding_keeps_what_batch_norm_knew() -> None:
    net = small_net()
    norm = net[1]
    assert isinstance(norm, nn.BatchNorm2d)
    made = layer_problem(INPUTS)
    assert made.batch_norm is not None
    assert made.chain is not None
    torch.testing.assert_close(made.batch_norm.mean, norm.running_mean)
    torch.testing.assert_close(made.batch_norm.variance, norm.running_var)
    alive = [0, 1, 3]
    before = made.batch_norm.undo(made.chain.layer(INPUTS, made.weight))
    torch.testing.assert_close(before[:, alive], net[0](INPUTS)[:, alive], rtol=1e-4, atol=1e-4)


def test_two_batch_norms_in_a_row() -> None:
    net = small_net()
    second = nn.BatchNorm2d(4)
    second.weight.data, second.bias.data = torch.tensor([2.0, 1.0, 1.0, -1.0]), torch.tensor([0.1, 0.2, 0.3, 0.4])
    second.running_mean = torch.tensor([0.5, -0.5, 0.0, 1.0])
    graph = trace(nn.Sequential(net[0], net[1], second, *list(net)[2:]).eval(), (3, 6, 6))
    first = graph.layers[0]
    outputs = F.conv2d(INPUTS, graph.weight(first), graph.bias(first), padding=1)
    alive = [0, 1, 3]
    before = graph.batch_norms[first.name].undo(outputs)[:, alive]
    torch.testing.assert_close(before, net[0](INPUTS)[:, alive], rtol=1e-4, atol=1e-4)


def test_layers_without_batch_norm_have_none() -> None:
    graph = trace(small_net(), (3, 6, 6))
    assert set(graph.batch_norms) == {graph.layers[0].name}


def test_a_batch_norm_that_was_not_folded_is_known_all_the_same() -> None:
    net = small_net()
    graph = trace(net, (3, 6, 6), fold_batch_norm=False)
    known = graph.batch_norms[graph.layers[0].name]
    assert torch.equal(known.mean, net[1].running_mean)  # type: ignore[arg-type]
    outputs = net[0](INPUTS)
    torch.testing.assert_close(known.undo(outputs), outputs)
    folded = trace(net, (3, 6, 6)).batch_norms[graph.layers[0].name]
    alive = [0, 1, 3]  # a dead channel's outputs are lost by folding
    torch.testing.assert_close(folded.undo(net[1](outputs))[:, alive], outputs[:, alive], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fold", [True, False])
def test_it_runs_with_batch_norm_folded_or_not(fold: bool) -> None:
    graph = trace(small_net(), (3, 6, 6), fold_batch_norm=fold)
    images = ImageSet((255 * INPUTS).to(torch.uint8), None, "made")
    ranges = calibrate(graph, images, parse_scheme("int4-per-tensor"))
    plain, _ = choose_codes(graph, ranges, LAC(iterations=5, learning_rate=0.1))
    moved, _ = choose_codes(graph, ranges, LACPDA(iterations=5, learning_rate=0.1, pda_steps=3, radius=0.2))
    first, last = (layer.name for layer in graph.layers)
    assert not torch.equal(plain.codes[first], moved.codes[first])
    assert moved.codes[last].shape == plain.codes[last].shape


def test_batch_norm_behind_linear_layers_alone_is_not_enough() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(108, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)).eval()
    graph = trace(net, (3, 6, 6))
    ranges = calibrate(graph, ImageSet((255 * INPUTS).to(torch.uint8), None, "made"), parse_scheme("int8"))
    with pytest.raises(UnsupportedError, match="take lac, which does without"):
        choose_codes(graph, ranges, LACPDA())


def test_the_mismatch_is_that_of_the_unfolded_network() -> None:
    """Straight from the formula: per image, before BatchNorm, over live channels."""
    net, made = small_net(), layer_problem(INPUTS)
    assert made.batch_norm is not None
    assert made.chain is not None
    a = net[0](INPUTS)[:, [0, 1, 3]]
    mean, deviation = a.mean((2, 3)), (a.var((2, 3), correction=0) + 1e-6).sqrt()
    mu = net[1].running_mean[[0, 1, 3]]
    sd = (net[1].running_var[[0, 1, 3]] + 1e-6).sqrt()
    expected = ((mu - mean).square().sum() + (sd - deviation).square().sum()) / 10
    found = mismatch(made.chain.layer(INPUTS, made.weight), made.batch_norm)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", [1, 20])
def test_inputs_move_towards_the_running_statistics_within_the_radius(steps: int) -> None:
    made = layer_problem(INPUTS)
    assert made.batch_norm is not None
    assert made.chain is not None
    moved = LACPDA(pda_steps=steps, radius=0.05).approximate(made.chain, made.weight, made.batch_norm, INPUTS)
    assert float((moved - INPUTS).abs().max()) <= 0.05 + 1e-6
    assert float((moved - INPUTS).abs().mean()) > 0.02
    before, after = (mismatch(made.chain.layer(x, made.weight), made.batch_norm) for x in (INPUTS, moved))
    assert float(after) < 0.95 * float(before)


def test_without_steps_it_is_lac() -> None:
    made = layer_problem(INPUTS)
    plain = LAC(iterations=30).choose(made)
    assert torch.equal(LACPDA(iterations=30, pda_steps=0).choose(made), plain)


@pytest.mark.parametrize("target", ["clean", "perturbed"])
def test_targets(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from quantinel.defenses import lac_pda
    from quantinel.defenses.chain_training import Reconstruction

    seen: list[Reconstruction] = []

    def spy(problem: LayerProblem, options: object, reconstruction: Reconstruction) -> Tensor:
        seen.append(reconstruction)
        return torch.zeros(problem.weight.shape, dtype=torch.int8)

    monkeypatch.setattr(lac_pda, "correct_activations", spy)
    made = layer_problem(INPUTS, drift=0.3)
    assert made.chain is not None
    LACPDA(pda_steps=4, radius=0.05, batch_size=4, target=target).choose(made)  # type: ignore[arg-type]
    found = seen[0]
    assert found.inputs.shape == INPUTS.shape
    assert not torch.equal(found.inputs, INPUTS)
    if target == "clean":
        torch.testing.assert_close(found.targets, made.chain.targets)
    else:
        expected = made.chain.layer(found.inputs + 0.3 * INPUTS, made.weight).relu()
        torch.testing.assert_close(found.targets, expected)


@pytest.mark.parametrize("options", [{"pda_steps": -1}, {"radius": -0.1}, {"target": "poisoned"}])
def test_bad_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        LACPDA(**options)  # type: ignore[arg-type]
