"""Gradient methods: one objective each, on layers where the answer is known."""

from __future__ import annotations

import dataclasses
from typing import Literal

import pytest
import torch
from tests.defenses.support import correlated, linear_chain, moments_of, output_error, problem

from quantinel.defenses import LAC, AdaRound, EFRAPReleased, Nearest
from quantinel.defenses.chain_training import ChainOptions
from quantinel.defenses.efrap_objective import flip_costs, guided
from quantinel.defenses.relaxed_rounding import RelaxedRounding
from quantinel.errors import UsageError
from quantinel.quantization.layer_problem import Chain, LayerProblem, RoundingMethod

X = correlated(300, 60)
W = torch.randn(5, 60, generator=torch.Generator().manual_seed(1))
STEP = 0.3


def made(**more: float) -> LayerProblem:
    return problem(W, STEP, 4, linear_chain(X, W, **more), moments_of(X, W, **more))  # type: ignore[arg-type]


def error(method: RoundingMethod, drift: float = 0.0) -> float:
    return output_error(X, W, method.choose(made(drift=drift)), STEP, drift)


@pytest.mark.parametrize("stretch", [0.0, 0.1])
def test_relaxed_rounding_starts_at_the_float_weight(stretch: float) -> None:
    rounding = RelaxedRounding.of(made(), stretch)
    alpha = rounding.start(made().cell.fraction)
    torch.testing.assert_close(
        rounding.soft_weight(rounding.relaxed(alpha)), W.clamp(-7 * STEP, 7 * STEP), atol=1e-5, rtol=0
    )


def test_the_rectified_sigmoid_reaches_both_ends() -> None:
    rounding = RelaxedRounding.of(made(), 0.1)
    h = rounding.relaxed(torch.tensor([-4.0, -2.0, 0.0, 2.0, 4.0]))
    torch.testing.assert_close(h, torch.tensor([0.0, 0.0430, 0.5, 0.9570, 1.0]), atol=1e-4, rtol=0)


def test_adaround_reconstructs_and_needs_its_regulariser() -> None:
    found = error(AdaRound(iterations=800, learning_rate=0.02))
    assert found < 0.3 * error(Nearest())
    assert found < 0.7 * error(AdaRound(iterations=800, learning_rate=0.02, binary_weight=0.0))


def test_adaround_follows_the_float_network_not_its_own_inputs() -> None:
    """Float inputs are 5 % larger than what the layer receives: its codes must make up for that."""
    found = error(AdaRound(iterations=800, learning_rate=0.02), drift=0.05)
    assert found < 0.3 * error(Nearest(), drift=0.05)


def test_adaround_anneals_after_its_warm_up() -> None:
    method = AdaRound(iterations=100)
    assert method.beta(19) is None
    assert method.beta(20) == pytest.approx(20.0)
    assert method.beta(60) == pytest.approx(11.0)
    assert method.beta(100) == pytest.approx(2.0)


def test_the_regulariser_alone_rounds_to_nearest() -> None:
    """Without inputs, |2 h - 1| is pushed away from 1/2 on the side where the float weight lies."""
    silent = problem(W, STEP, 4, linear_chain(torch.zeros(4, 60), W))
    clear = (silent.cell.fraction - 0.5).abs() > 0.02
    codes = AdaRound(iterations=200, learning_rate=0.02).choose(silent)
    assert torch.equal(codes[clear], Nearest().choose(silent)[clear])


def test_lac_reconstructs_and_may_leave_the_cell() -> None:
    method = LAC(iterations=500, learning_rate=0.02)
    codes = method.choose(made(drift=0.2))
    cell = made().cell
    assert output_error(X, W, codes, STEP, 0.2) < 0.3 * error(Nearest(), drift=0.2)
    assert ((codes < cell.floor) | (codes > cell.ceil)).any()


def test_bounded_lac_stays_in_the_cell() -> None:
    codes = LAC(iterations=500, learning_rate=0.02, bound=0.5).choose(made(drift=0.2))
    cell = made().cell
    assert ((codes == cell.floor) | (codes == cell.ceil)).all()
    assert output_error(X, W, codes, STEP, 0.2) < 0.8 * error(Nearest(), drift=0.2)


@pytest.mark.parametrize("direction", [-1, 1])
def test_bounded_lac_leaves_weights_on_the_grid_alone(direction: int) -> None:
    """At codes above 64, float32 steps are as coarse as the margin was that kept an offset off the tie."""
    generator = torch.Generator().manual_seed(0)
    inputs, codes = torch.rand(64, 32, generator=generator), torch.randint(-127, 128, (8, 32), generator=generator)
    step = 0.013
    weight = codes * step
    chain = Chain(inputs, inputs, inputs @ (weight + direction * 3 * step).T, lambda x, w: x @ w.T, 1)
    chosen = LAC(iterations=100, learning_rate=step / 10, bound=0.5).choose(problem(weight, step, chain=chain))
    assert torch.equal(chosen, codes.to(torch.int8))


def test_lac_without_steps_is_nearest() -> None:
    assert torch.equal(LAC(iterations=0).choose(made()), Nearest().choose(made()))


def test_lac_has_no_gradient_where_the_grid_ends() -> None:
    """A clipped weight stays: the released clamp comes after the straight-through rounding."""
    weight = torch.tensor([[10.0, 0.0]])
    chain = linear_chain(torch.rand(50, 2, generator=torch.Generator().manual_seed(0)), weight)
    codes = LAC(iterations=50, learning_rate=0.1).choose(problem(weight, 0.1, 4, chain))
    assert codes[0, 0] == 7


@pytest.mark.parametrize("guidance", ["weight", "neuron", "row"])
@pytest.mark.parametrize("normalization", ["released", "paper"])
def test_efrap_flips_without_activations_and_reconstructs_without_flips(guidance: str, normalization: str) -> None:
    def share(flip: float, activation: float) -> float:
        method = EFRAPReleased(
            iterations=300, learning_rate=0.05, flip_weight=flip, activation_weight=activation, binary_weight=1e-4,
            guidance=guidance, normalization=normalization,
        )  # type: ignore[arg-type]  # fmt: skip
        codes = method.choose(made())
        return float((codes != Nearest().choose(made())).float().mean())

    assert share(1.0, 0.0) > share(0.0, 1.0)
    weak = EFRAPReleased(iterations=400, learning_rate=0.05, flip_weight=0.0, binary_weight=1e-4)
    assert error(weak) < 0.5 * error(Nearest())


@pytest.mark.parametrize("normalization", ["released", "paper"])
def test_a_large_binary_weight_keeps_nearest_codes(normalization: Literal["released", "paper"]) -> None:
    """Regression: the paper's form ignored it."""
    options = EFRAPReleased(iterations=300, learning_rate=0.05, flip_weight=0.0, normalization=normalization)
    clear = (made().cell.fraction - 0.5).abs() > 0.02
    nearest = Nearest().choose(made())[clear]
    held = dataclasses.replace(options, binary_weight=1e4).choose(made())
    assert torch.equal(held[clear], nearest)
    assert not torch.equal(dataclasses.replace(options, binary_weight=0.0).choose(made())[clear], nearest)
    default = dataclasses.replace(options, binary_weight=1.0 if normalization == "paper" else 0.01)
    assert torch.equal(options.choose(made()), default.choose(made()))


def test_guidance_by_rows() -> None:
    errors = torch.tensor([[0.1, 0.3], [0.2, 0.0], [0.4, 0.4]])
    norms = errors.norm(dim=1)
    ratio = norms / norms.mean()
    assert torch.equal(guided(errors, "weight"), errors)
    torch.testing.assert_close(guided(errors, "neuron"), errors * ratio[:, None])
    torch.testing.assert_close(guided(errors, "row"), (errors.mean() * ratio)[:, None].expand(3, 1))


def test_closed_form_costs_by_rows_are_equal_within_a_channel() -> None:
    costs = flip_costs(made(), "row")
    for channel, free in zip(costs, made().cell.free, strict=True):
        assert channel[free].std() < 1e-6 * channel.max()
    assert costs.amax(dim=1).std() > 0


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (AdaRound, {"warm_up": 1.0}),
        (AdaRound, {"binary_weight": -1.0}),
        (LAC, {"bound": 0.0}),
        (LAC, {"bound": float("nan")}),
        (LAC, {"iterations": -1}),
        (EFRAPReleased, {"guidance": "magic"}),
    ],
)
def test_bad_options_are_refused(method: type[ChainOptions], options: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        method(**options)  # type: ignore[arg-type]
