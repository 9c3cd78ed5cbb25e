"""Coordinate descent over roundings: the closed-form route for layer reconstruction.

Minimises, over codes between floor and ceiling,

    tr(V H V^T) - 2 tr(V C W^T) + ridge ||V - W||^2 + sum_i p_i(code i)

with V = scale * codes. Flipping one weight by d changes the first two terms by ``2 d G + d^2 H_jj`` where
``G = V H - W C^T``; the other terms (EFRAP's flip term is linear in the 0/1 choice) join the same comparison.
All output channels move at once; columns are visited in blocks, and G outside the block is brought up to date
with one matrix product per block. Output channels do not interact, so many of them are solved in shares: beside
the moments, memory is bounded by `_SHARE_VALUES` whatever the layer's size.
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


@dataclass(frozen=True)
class RoundingProblem:
    """One layer for the solver; G groups of O output channels with D inputs each.

    Attributes:
        weight: W, (G, O, D).
        moments: H and C.
        scale: (G, O, 1).
        floor: lower codes, (G, O, D) float.
        ceil: upper codes, (G, O, D) float.
        penalty_floor: cost of choosing the lower code, (G, O, D) or None.
        penalty_ceil: cost of choosing the upper code, (G, O, D) or None.
        ridge: (G,) weight of ||V - W||^2, or None.
    """

    weight: Tensor
    moments: Moments
    scale: Tensor
    floor: Tensor
    ceil: Tensor
    penalty_floor: Tensor | None = None
    penalty_ceil: Tensor | None = None
    ridge: Tensor | None = None

    def outputs(self, begin: int, end: int) -> RoundingProblem:
        """The same for a share of each group's output channels."""

        def part(value: Tensor) -> Tensor:
            return value[:, begin:end]

        return RoundingProblem(
            part(self.weight), self.moments.outputs(begin, end), part(self.scale), part(self.floor), part(self.ceil),
            None if self.penalty_floor is None else part(self.penalty_floor),
            None if self.penalty_ceil is None else part(self.penalty_ceil),
            self.ridge,
        )  # fmt: skip


def coordinate_descent(problem: RoundingProblem, start: Tensor, sweeps: int) -> Tensor:
    """Flip single weights while that lowers the objective.

    The inner loop runs in NumPy: a column of a small layer takes microseconds there, less than the dispatch of
    one torch operator.

    Args:
        problem: the layer.
        start: codes to start from, (G, O, D) float, each floor or ceiling.
        sweeps: at most this many passes over all columns; stops when a pass flips nothing.

    Returns:
        Codes (G, O, D) float; the objective is never above that of ``start`` (up to float32 rounding).
    """
    groups, channels, size = problem.weight.shape
    share = max(1, _SHARE_VALUES // (groups * size))
    if channels <= share:
        return _solve(problem, start, sweeps)
    parts = [
        _solve(problem.outputs(begin, begin + share), start[:, begin : begin + share], sweeps)
        for begin in range(0, channels, share)
    ]
    return torch.cat(parts, dim=1)


def _solve(problem: RoundingProblem, start: Tensor, sweeps: int) -> Tensor:
    gradient = problem.moments.gradient(start * problem.scale, problem.weight)
    columns = _Columns(problem, start)
    for _ in range(sweeps):
        if not columns.sweep(gradient):
            break
    upper = torch.from_numpy(columns.sign < 0).permute(1, 2, 0)
    return torch.where(upper, problem.ceil, problem.floor)


class _Columns:
    """The layer as seen by the inner loop: arrays with the column first, (D, G, O)."""

    def __init__(self, problem: RoundingProblem, start: Tensor) -> None:
        def column_first(value: Tensor) -> np.ndarray:
            return np.ascontiguousarray(value.permute(2, 0, 1).numpy())

        self.moments = problem.moments
        self.step = column_first((problem.ceil - problem.floor) * problem.scale)
        self.free = column_first(problem.ceil > problem.floor)
        self.sign = np.where(column_first(start > problem.floor), np.float32(-1), np.float32(1))
        diagonal = problem.moments.diagonal()
        self.ridge: np.ndarray | None = None
        if problem.ridge is not None:
            diagonal = diagonal + problem.ridge[:, None]
            self.ridge = problem.ridge[None, :, None].numpy()
            self.offset = column_first(start * problem.scale - problem.weight)
        self.curvature = np.square(self.step) * diagonal.t().unsqueeze(2).numpy()
        self.extra: np.ndarray | None = None
        if problem.penalty_floor is not None and problem.penalty_ceil is not None:
            self.extra = column_first(problem.penalty_ceil - problem.penalty_floor)

    def sweep(self, gradient: Gradient) -> int:
        """One pass over all columns; ``gradient`` is kept up to date. Returns the number of flips."""
        size = self.step.shape[0]
        flips = 0
        for begin in range(0, size, _BLOCK):
            end = min(begin + _BLOCK, size)
            moves, count = self._block(begin, end, gradient.columns(begin, end))
            if count:
                flips += count
                gradient.move(begin, end, torch.from_numpy(moves).permute(1, 2, 0))
        return flips

    def _block(self, begin: int, end: int, gradient: Tensor) -> tuple[np.ndarray, int]:
        """Visit the columns of one block; returns the moves (B, G, O) and how many weights flipped."""
        local = gradient.permute(2, 0, 1).numpy().copy(order="C")
        if self.ridge is not None:
            local = local + self.ridge * self.offset[begin:end]
        gram = np.ascontiguousarray(self.moments.block(begin, end).permute(1, 2, 0).numpy())[..., None]
        sign, free = self.sign[begin:end], self.free[begin:end]
        move = sign * self.step[begin:end]
        cost = self.curvature[begin:end]
        if self.extra is not None:
            cost = cost + sign * self.extra[begin:end]
        double = 2 * move
        moves = np.zeros_like(move)
        count = 0
        for j in range(end - begin):
            taken = double[j] * local[j] + cost[j] < 0
            taken &= free[j]
            flipped = int(np.count_nonzero(taken))
            if flipped:
                count += flipped
                moves[j] = move[j] * taken
                sign[j][taken] *= -1
                local[j + 1 :] += gram[j, j + 1 :] * moves[j]
        if self.ridge is not None:
            self.offset[begin:end] += moves
        return moves, count
