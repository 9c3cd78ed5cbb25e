"""Coordinate descent over roundings: the closed-form route for layer reconstruction.

Minimises, over codes between the lowest and the highest that each weight may have,

    E ||V x' - T x - r||^2 + ridge ||V - T||^2 + sum_i p_i code_i

with V = scale * codes and a target T = W + lean * R. Moving one weight by d changes the first term by ``2 d G + d^2
H_jj`` where ``G = E[(V x' - T x - r) x'^T]``; the other terms (EFRAP's flip term is linear in the choice of a code)
join the same parabola, whose minimum between the two bounds is taken. All output channels move at once; columns are
visited in blocks, and G outside the block is brought up to date with one matrix product per block. Output channels do
not interact, so many of them are solved in shares: beside the moments, memory is bounded by `_SHARE_VALUES` whatever
the layer's size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from quantinel.quantization.moments import Gradient, Moments

_BLOCK = 64
_SHARE_VALUES = 1 << 24
"""Weights of one share of output channels; the solver keeps about ten arrays of this size (64 MiB each)."""
_FLATTEST = np.float32(1e-30)
"""Curvature of a weight that no image excites: a slope there, of ``step_cost`` alone, takes it to a bound."""

LEAST_RIDGE = 1e-24
"""Of inputs that were never seen: less than any second moment of those that were, in their units (`units`)."""


@dataclass(frozen=True)
class RoundingProblem:
    """One layer for the solver; G groups of O output channels with D inputs each.

    Attributes:
        target: T, (G, O, D).
        moments: H, and what drifted inputs do.
        scale: (G, O, 1).
        lowest: codes, (G, O, D) float.
        highest: codes, (G, O, D) float; equal to ``lowest`` where there is no choice.
        step_cost: p, cost of a code over the next lower one, (G, O, D) or None.
        ridge: (G,) weight of ||V - T||^2, or None.
        lean: how far T is from W along R.
    """

    target: Tensor
    moments: Moments
    scale: Tensor
    lowest: Tensor
    highest: Tensor
    step_cost: Tensor | None = None
    ridge: Tensor | None = None
    lean: float = 0.0

    def outputs(self, begin: int, end: int) -> RoundingProblem:
        """The same for a share of each group's output channels."""

        def part(value: Tensor) -> Tensor:
            return value[:, begin:end]

        return RoundingProblem(
            part(self.target), self.moments.outputs(begin, end), part(self.scale), part(self.lowest),
            part(self.highest), None if self.step_cost is None else part(self.step_cost), self.ridge,
            self.lean,
        )  # fmt: skip


def coordinate_descent(problem: RoundingProblem, start: Tensor, sweeps: int) -> Tensor:
    """Move single weights while that lowers the objective.

    The inner loop runs in NumPy: a column of a small layer takes microseconds there, less than the dispatch of
    one torch operator.

    Args:
        problem: the layer.
        start: codes to start from, (G, O, D) float, within their bounds.
        sweeps: at most this many passes over all columns; stops when a pass moves nothing.

    Returns:
        Codes (G, O, D) float; the objective is never above that of ``start`` (up to float32 rounding).
    """
    groups, channels, size = problem.target.shape
    share = max(1, _SHARE_VALUES // (groups * size))
    if channels <= share:
        return _solve(problem, start, sweeps)
    parts = [
        _solve(problem.outputs(begin, begin + share), start[:, begin : begin + share], sweeps)
        for begin in range(0, channels, share)
    ]
    return torch.cat(parts, dim=1)


def _solve(problem: RoundingProblem, start: Tensor, sweeps: int) -> Tensor:
    gradient = problem.moments.gradient(start * problem.scale - problem.target, problem.lean)
    columns = _Columns(problem, start)
    with np.errstate(over="ignore", invalid="ignore"):  # moments that are not finite leave codes where they are
        for _ in range(sweeps):
            if not columns.sweep(gradient):
                break
    return torch.from_numpy(columns.codes).permute(1, 2, 0)


class _Columns:
    """The layer as seen by the inner loop: arrays with the column first, (D, G, O)."""

    def __init__(self, problem: RoundingProblem, start: Tensor) -> None:
        def column_first(value: Tensor) -> np.ndarray:
            return np.ascontiguousarray(value.permute(2, 0, 1).numpy())

        self.moments = problem.moments
        self.scale = column_first(problem.scale)[0]
        self.codes = np.array(start.permute(2, 0, 1).numpy(), order="C")  # a copy: the start is the caller's
        self.lowest, self.highest = column_first(problem.lowest), column_first(problem.highest)
        diagonal = problem.moments.diagonal()
        self.ridge: np.ndarray | None = None
        if problem.ridge is not None:
            diagonal = diagonal + problem.ridge[:, None]
            self.ridge = problem.ridge[None, :, None].numpy()
            self.offset = column_first(start * problem.scale - problem.target)
        curvature = np.square(self.scale) * diagonal.t().unsqueeze(2).numpy()
        self.curvature = np.maximum(curvature, _FLATTEST)
        self.half_cost = None if problem.step_cost is None else column_first(problem.step_cost / 2)

    def sweep(self, gradient: Gradient) -> int:
        """One pass over all columns; ``gradient`` is kept up to date. Returns the number of moves."""
        size = len(self.codes)
        moved = 0
        for begin in range(0, size, _BLOCK):
            end = min(begin + _BLOCK, size)
            moves, count = self._block(begin, end, gradient.columns(begin, end))
            if count:
                moved += count
                gradient.move(begin, end, torch.from_numpy(moves).permute(1, 2, 0))
        return moved

    def _block(self, begin: int, end: int, gradient: Tensor) -> tuple[np.ndarray, int]:
        """Visit the columns of one block; returns the moves (B, G, O) and how many weights moved."""
        local = gradient.permute(2, 0, 1).numpy().copy(order="C")
        if self.ridge is not None:
            local = local + self.ridge * self.offset[begin:end]
        gram = np.ascontiguousarray(self.moments.block(begin, end).permute(1, 2, 0).numpy())[..., None]
        codes, curvature, scale = self.codes[begin:end], self.curvature[begin:end], self.scale
        below, above = self.lowest[begin:end], self.highest[begin:end]
        moves = np.zeros_like(local)
        count = 0
        for j in range(end - begin):
            slope = scale * local[j]
            if self.half_cost is not None:
                slope += self.half_cost[begin + j]
            best = np.rint(codes[j] - slope / curvature[j]).clip(below[j], above[j])
            np.copyto(best, codes[j], where=np.isnan(best))
            steps = best - codes[j]
            moved = int(np.count_nonzero(steps))
            if moved:
                count += moved
                codes[j] = best
                moves[j] = steps * scale
                local[j + 1 :] += gram[j, j + 1 :] * moves[j]
        if self.ridge is not None:
            self.offset[begin:end] += moves
        return moves, count
