from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quantinel.quantization.solver import RoundingProblem, coordinate_descent


def make_problem(
    groups: int, outputs: int, inputs: int, seed: int, penalty: float = 0.0
) -> tuple[RoundingProblem, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(groups, 3 * inputs, inputs, generator=generator)
    y = x + 0.1 * torch.randn(x.shape, generator=generator)
    weight = torch.randn(groups, outputs, inputs, generator=generator)
    scale = torch.rand(groups, outputs, 1, generator=generator) * 0.3 + 0.1
    floor = torch.floor(weight / scale)
    nearest_up = weight / scale - floor > 0.5
    cost = penalty * torch.rand(weight.shape, generator=generator)
    problem = RoundingProblem(
        weight, y.transpose(1, 2) @ y / x.shape[1], y.transpose(1, 2) @ x / x.shape[1], scale, floor, floor + 1,
        cost * ~nearest_up, cost * nearest_up,
    )  # fmt: skip
    return problem, torch.where(nearest_up, floor + 1, floor)


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 80), st.integers(0, 1000), st.floats(0.0, 1.0))
@settings(max_examples=30, deadline=None)
def test_objective_never_rises(groups: int, outputs: int, inputs: int, seed: int, penalty: float) -> None:
    problem, start = make_problem(groups, outputs, inputs, seed, penalty)
    before = problem.objective(start)
    for sweeps in (1, 5):
        codes = coordinate_descent(problem, start, sweeps)
        assert ((codes == problem.floor) | (codes == problem.ceil)).all()
        assert problem.objective(codes) <= before + 1e-4 * abs(before) + 1e-5


@pytest.mark.parametrize("seed", range(5))
def test_result_is_a_local_minimum(seed: int) -> None:
    problem, start = make_problem(1, 3, 70, seed, 0.2)
    codes = coordinate_descent(problem, start, 100)
    best = problem.objective(codes)
    other = problem.floor + problem.ceil - codes
    for row, column in itertools.product(range(3), range(70)):
        flipped = codes.clone()
        flipped[0, row, column] = other[0, row, column]
        assert problem.objective(flipped) >= best - 1e-4


def test_small_problem_is_close_to_the_exhaustive_optimum() -> None:
    gaps = []
    for seed in range(8):
        problem, start = make_problem(1, 1, 9, seed)
        found = problem.objective(coordinate_descent(problem, start, 50))
        values = [
            problem.objective(problem.floor + torch.tensor(bits).reshape(1, 1, 9))
            for bits in itertools.product((0.0, 1.0), repeat=9)
        ]
        start_gap = problem.objective(start) - min(values)
        gaps.append((found - min(values), start_gap))
    assert sum(gap for gap, _ in gaps) < 0.3 * sum(gap for _, gap in gaps)


def test_weights_without_choice_stay() -> None:
    problem, start = make_problem(1, 2, 6, 0)
    problem.ceil[0, :, 2] = problem.floor[0, :, 2]
    start[0, :, 2] = problem.floor[0, :, 2]
    codes = coordinate_descent(problem, start, 10)
    assert torch.equal(codes[0, :, 2], problem.floor[0, :, 2])
