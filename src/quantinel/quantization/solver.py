"""Coordinate descent over roundings: the closed-form route for layer reconstruction.

Minimises, over codes between floor and ceiling,

    tr(V H V^T) - 2 tr(V C W^T) + sum_i p_i [code i is the nearest one]

with V = scale * codes. Flipping one weight by d changes the first two terms by ``2 d G + d^2 H_jj`` where
``G = V H - W C^T``; the last term (EFRAP's flip term, linear in the 0/1 choice) joins the same comparison.
All output channels move at once; columns are visited in blocks, and G outside the block is brought up to date
with one matrix product per block.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_BLOCK = 64


@dataclass(frozen=True)
class RoundingProblem:
    """One layer for the solver; G groups of O output channels with D inputs each.

    Attributes:
        weight: W, (G, O, D).
        gram: H, (G, D, D).
        cross: C, (G, D, D).
        scale: (G, O, 1).
        floor: lower codes, (G, O, D) float.
        ceil: upper codes, (G, O, D) float.
        penalty_floor: cost of choosing the lower code, (G, O, D) or None.
        penalty_ceil: cost of choosing the upper code, (G, O, D) or None.
    """

    weight: Tensor
    gram: Tensor
    cross: Tensor
    scale: Tensor
    floor: Tensor
    ceil: Tensor
    penalty_floor: Tensor | None = None
    penalty_ceil: Tensor | None = None

    def objective(self, codes: Tensor) -> float:
        """Value of the objective, without its constant term; float64."""
        wide = (codes * self.scale).double()
        gram, cross, weight = self.gram.double(), self.cross.double(), self.weight.double()
        value = (wide @ gram * wide).sum() - 2 * (wide * (weight @ cross.transpose(1, 2))).sum()
        if self.penalty_floor is not None and self.penalty_ceil is not None:
            upper = codes > self.floor
            value = value + torch.where(upper, self.penalty_ceil, self.penalty_floor).double().sum()
        return float(value)


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
    gradient = (start * problem.scale) @ problem.gram - problem.weight @ problem.cross.transpose(1, 2)
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

        self.gram = problem.gram
        self.step = column_first((problem.ceil - problem.floor) * problem.scale)
        self.sign = np.where(column_first(start > problem.floor), np.float32(-1), np.float32(1))
        diagonal = problem.gram.diagonal(dim1=1, dim2=2).t().unsqueeze(2).numpy()
        self.curvature = np.square(self.step) * diagonal
        self.extra: np.ndarray | None = None
        if problem.penalty_floor is not None and problem.penalty_ceil is not None:
            self.extra = column_first(problem.penalty_ceil - problem.penalty_floor)

    def sweep(self, gradient: Tensor) -> int:
        """One pass over all columns; ``gradient`` (G, O, D) is kept up to date. Returns the number of flips."""
        size = self.step.shape[0]
        flips = 0
        for begin in range(0, size, _BLOCK):
            end = min(begin + _BLOCK, size)
            moves, count = self._block(begin, end, gradient)
            if count:
                flips += count
                gradient.baddbmm_(torch.from_numpy(moves).permute(1, 2, 0), self.gram[:, begin:end, :])
        return flips

    def _block(self, begin: int, end: int, gradient: Tensor) -> tuple[np.ndarray, int]:
        """Visit the columns of one block; returns the moves (B, G, O) and how many weights flipped."""
        local = np.ascontiguousarray(gradient[:, :, begin:end].permute(2, 0, 1).numpy())
        gram = np.ascontiguousarray(self.gram[:, begin:end, begin:end].permute(1, 2, 0).numpy())[..., None]
        sign = self.sign[begin:end]
        move = sign * self.step[begin:end]
        cost = self.curvature[begin:end]
        if self.extra is not None:
            cost = cost + sign * self.extra[begin:end]
        double = 2 * move
        moves = np.zeros_like(move)
        count = 0
        for j in range(end - begin):
            taken = double[j] * local[j] + cost[j] < 0
            taken &= move[j] != 0
            flipped = int(np.count_nonzero(taken))
            if flipped:
                count += flipped
                moves[j] = move[j] * taken
                sign[j][taken] *= -1
                local[j + 1 :] += gram[j, j + 1 :] * moves[j]
        return moves, count
