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


@torch.inference_mode()
def coordinate_descent(problem: RoundingProblem, start: Tensor, sweeps: int) -> Tensor:
    """Flip single weights while that lowers the objective.

    Args:
        problem: the layer.
        start: codes to start from, (G, O, D) float, each floor or ceiling.
        sweeps: at most this many passes over all columns; stops when a pass flips nothing.

    Returns:
        Codes (G, O, D) float; the objective is never above that of ``start`` (up to float32 rounding).
    """
    codes = start.clone()
    gram = problem.gram
    step = (problem.ceil - problem.floor) * problem.scale
    gradient = (codes * problem.scale) @ gram - problem.weight @ problem.cross.transpose(1, 2)
    extra = None
    if problem.penalty_floor is not None and problem.penalty_ceil is not None:
        extra = problem.penalty_ceil - problem.penalty_floor
    size = codes.shape[2]
    diagonal = gram.diagonal(dim1=1, dim2=2)
    upper = codes > problem.floor
    for _ in range(sweeps):
        flips = 0
        for begin in range(0, size, _BLOCK):
            end = min(begin + _BLOCK, size)
            moves = torch.zeros_like(codes[:, :, begin:end])
            local_gradient = gradient[:, :, begin:end].clone()
            local_gram = gram[:, begin:end, begin:end]
            sign = torch.where(upper[:, :, begin:end], -1.0, 1.0)
            move = sign * step[:, :, begin:end]
            curvature = move.square() * diagonal[:, None, begin:end]
            if extra is not None:
                curvature = curvature + sign * extra[:, :, begin:end]
            for j in range(end - begin):
                change = curvature[:, :, j] + 2.0 * move[:, :, j] * local_gradient[:, :, j]
                taken = torch.where((change < 0) & (move[:, :, j] != 0), move[:, :, j], 0.0)
                moves[:, :, j] = taken
                local_gradient.baddbmm_(taken.unsqueeze(2), local_gram[:, j : j + 1, :])
            flipped = moves != 0
            count = int(flipped.sum())
            if count:
                flips += count
                upper[:, :, begin:end] ^= flipped
                gradient.baddbmm_(moves, gram[:, begin:end, :])
        if not flips:
            break
    return torch.where(upper, problem.ceil, problem.floor)
