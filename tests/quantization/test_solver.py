from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quantinel.quantization import solver
from quantinel.quantization.moments import DenseMoments, SampledMoments
from quantinel.quantization.solver import RoundingProblem, coordinate_descent


def objective(problem: RoundingProblem, codes: Tensor) -> float:
    """Its value without the constant term, in float64, straight from the definition."""
    assert isinstance(problem.moments, DenseMoments)
    wide = (codes * problem.scale).double()
    assert problem.moments.drift is not None
    gram, drift, target = problem.moments.gram.double(), problem.moments.drift.double(), problem.target.double()
    value = (wide @ gram * wide).sum() - 2 * (wide * (target @ gram - drift)).sum()
    if problem.step_cost is not None:
        value = value + (problem.step_cost.double() * codes).sum()
    if problem.ridge is not None:
        value = value + (problem.ridge[:, None, None] * (wide - target).square()).sum()
    return float(value)


def make_problem(
    groups: int, outputs: int, inputs: int, seed: int, penalty: float = 0.0, room: int = 0
) -> tuple[RoundingProblem, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(groups, 3 * inputs, inputs, generator=generator)
    y = x + 0.1 * torch.randn(x.shape, generator=generator)
    weight = torch.randn(groups, outputs, inputs, generator=generator)
    scale = torch.rand(groups, outputs, 1, generator=generator) * 0.3 + 0.1
    floor = torch.floor(weight / scale)
    nearest_up = weight / scale - floor > 0.5
    cost = penalty * torch.rand(weight.shape, generator=generator)
    drift = weight @ (y - x).transpose(1, 2) @ y / x.shape[1]
    problem = RoundingProblem(
        weight, DenseMoments(gram=y.transpose(1, 2) @ y / x.shape[1], drift=drift),
        scale, floor - room, floor + 1 + room, torch.where(nearest_up, cost, -cost),
        ridge=penalty * torch.rand(groups, generator=generator),
    )  # fmt: skip
    return problem, torch.where(nearest_up, floor + 1, floor)


@given(
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 80),
    st.integers(0, 1000),
    st.floats(0.0, 1.0),
    st.integers(0, 4),
)
@settings(max_examples=30, deadline=None)
def test_objective_never_rises(groups: int, outputs: int, inputs: int, seed: int, penalty: float, room: int) -> None:
    problem, start = make_problem(groups, outputs, inputs, seed, penalty, room)
    before = objective(problem, start)
    for sweeps in (1, 5):
        codes = coordinate_descent(problem, start, sweeps)
        assert torch.equal(codes, codes.round())
        assert ((codes >= problem.lowest) & (codes <= problem.highest)).all()
        assert objective(problem, codes) <= before + 1e-4 * abs(before) + 1e-5


@pytest.mark.parametrize("room", [0, 3])
@pytest.mark.parametrize("seed", range(5))
def test_result_is_a_local_minimum(seed: int, room: int) -> None:
    problem, start = make_problem(1, 3, 70, seed, 0.2, room)
    codes = coordinate_descent(problem, start, 100)
    best = objective(problem, codes)
    for row, column in itertools.product(range(3), range(70)):
        low, high = (int(bound[0, row, column]) for bound in (problem.lowest, problem.highest))
        for code in range(low, high + 1):
            moved = codes.clone()
            moved[0, row, column] = code
            assert objective(problem, moved) >= best - 1e-4


def test_room_finds_what_neighbours_cannot() -> None:
    found = []
    for room in (0, 2):
        problem, start = make_problem(1, 5, 40, 7, room=room)
        found.append(objective(problem, coordinate_descent(problem, start, 50)))
    assert found[1] < found[0]


def test_small_problem_is_close_to_the_exhaustive_optimum() -> None:
    gaps = []
    for seed in range(8):
        problem, start = make_problem(1, 1, 9, seed)
        found = objective(problem, coordinate_descent(problem, start, 50))
        values = [
            objective(problem, problem.lowest + torch.tensor(bits).reshape(1, 1, 9))
            for bits in itertools.product((0.0, 1.0), repeat=9)
        ]
        start_gap = objective(problem, start) - min(values)
        gaps.append((found - min(values), start_gap))
    assert sum(gap for gap, _ in gaps) < 0.3 * sum(gap for _, gap in gaps)


def test_weights_without_choice_stay() -> None:
    problem, start = make_problem(1, 2, 6, 0)
    problem.highest[0, :, 2] = problem.lowest[0, :, 2]
    start[0, :, 2] = problem.lowest[0, :, 2]
    codes = coordinate_descent(problem, start, 10)
    assert torch.equal(codes[0, :, 2], problem.lowest[0, :, 2])


def test_the_start_is_left_alone_and_inputs_that_are_never_seen_follow_the_cost() -> None:
    """One output channel is laid out like its columns already; a dead input has no curvature."""
    problem, start = make_problem(1, 1, 6, 2)
    assert isinstance(problem.moments, DenseMoments)
    assert problem.moments.drift is not None
    problem.moments.gram[0, 3] = problem.moments.gram[0, :, 3] = problem.moments.drift[0, :, 3] = 0
    cost = torch.zeros_like(problem.target)
    before = start.clone()
    kept = coordinate_descent(dataclasses.replace(problem, step_cost=cost), start, 5)
    assert torch.equal(start, before)
    assert kept[0, 0, 3] == start[0, 0, 3]
    for sign, bound in ((1.0, problem.lowest), (-1.0, problem.highest)):
        cost[0, 0, 3] = sign
        moved = coordinate_descent(dataclasses.replace(problem, step_cost=cost), start, 5)
        assert moved[0, 0, 3] == bound[0, 0, 3]


def test_moments_that_are_not_finite_leave_codes_where_they_are() -> None:
    problem, start = make_problem(1, 2, 6, 4)
    assert isinstance(problem.moments, DenseMoments)
    problem.moments.gram[0, 1, 1] = torch.inf
    codes = coordinate_descent(problem, start, 5)
    assert torch.isfinite(codes).all()
    assert ((codes >= problem.lowest) & (codes <= problem.highest)).all()


def test_one_output_channel_does_not_share_memory_with_its_gradient() -> None:
    """A column block of a single channel is contiguous already: the solver must still work on a copy."""
    problem, start = make_problem(1, 1, 70, 3)
    assert isinstance(problem.moments, DenseMoments)
    assert problem.moments.drift is not None
    first = coordinate_descent(problem, start, 3)
    double = RoundingProblem(
        problem.target.expand(1, 2, 70),
        DenseMoments(gram=problem.moments.gram, drift=problem.moments.drift.expand(1, 2, 70)),
        problem.scale.expand(1, 2, 1),
        problem.lowest.expand(1, 2, 70), problem.highest.expand(1, 2, 70), problem.step_cost.expand(1, 2, 70),
        problem.ridge,
    )  # fmt: skip
    second = coordinate_descent(double, start.expand(1, 2, 70), 3)
    assert torch.equal(first.expand(1, 2, 70), second)


def test_shares_of_output_channels_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, start = make_problem(2, 7, 90, 5, 0.1)
    whole = coordinate_descent(problem, start, 4)
    monkeypatch.setattr(solver, "_SHARE_VALUES", 2 * 90 * 3)
    assert torch.equal(coordinate_descent(problem, start, 4), whole)


@pytest.mark.parametrize("groups", [1, 2])
def test_sampled_vectors_give_the_codes_of_their_moments(groups: int) -> None:
    generator = torch.Generator().manual_seed(groups)
    rows = torch.randn(groups, 40, 100, generator=generator)
    drift = 0.1 * torch.randn(rows.shape, generator=generator)
    weight = torch.randn(groups, 5, 100, generator=generator)
    scale = torch.full((groups, 5, 1), 0.25)
    floor = torch.floor(weight / scale)
    missed = weight @ drift.transpose(1, 2)
    dense = DenseMoments(gram=rows.transpose(1, 2) @ rows / 40, drift=missed @ rows / 40)
    sampled = SampledMoments(rows=rows, drift=missed)
    start = torch.round(weight / scale)
    ridge = torch.full((groups,), 0.01)
    found = [
        coordinate_descent(RoundingProblem(weight, moments, scale, floor, floor + 1, ridge=ridge), start, 5)
        for moments in (dense, sampled)
    ]
    assert (found[0] == found[1]).float().mean() > 0.99
    difference = start * scale - weight
    assert sampled.excess(difference) == pytest.approx(dense.excess(difference), rel=1e-4)
    torch.testing.assert_close(sampled.block(3, 30), dense.block(3, 30))
    torch.testing.assert_close(sampled.diagonal(), dense.diagonal())
    assert sampled.energy(difference) == pytest.approx(dense.energy(difference), rel=1e-4)
    expected = (difference @ rows.transpose(1, 2)).square().sum() / 40
    assert dense.energy(difference) == pytest.approx(float(expected), rel=1e-4)
