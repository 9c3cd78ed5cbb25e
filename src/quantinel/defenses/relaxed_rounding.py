"""Roundings between floor and ceiling, relaxed to h in [0, 1] while they are trained.

Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", ICML 2020, equations 21 to 24: one free
parameter alpha a weight, h = clip(sigmoid(alpha) (zeta - gamma) + gamma, 0, 1) with zeta = 1.1 and gamma = -0.1.
EFRAP disables the stretch (zeta = 1, gamma = 0; specification of the defenses, 1.2). Both start where the soft weight
equals the float weight and commit to the ceiling where alpha >= 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quantinel.quantization.reconstruction import LayerProblem
from quantinel.quantization.rounding import RoundingCell, broadcast_scale

_MARGIN = 1e-6
"""logit(0) is infinite in the released code; clamping keeps the same sign without infinities."""


@dataclass(frozen=True)
class RelaxedRounding:
    """h and the soft weight of one layer.

    Attributes:
        scale: broadcast to the weight.
        floor: lower codes.
        free: 1.0 where there is a choice.
        code_min: of the grid.
        code_max: of the grid.
        stretch: how far the sigmoid exceeds [0, 1] on either side before it is clipped.
    """

    scale: Tensor
    floor: Tensor
    free: Tensor
    code_min: int
    code_max: int
    stretch: float = 0.0

    @classmethod
    def of(cls, problem: LayerProblem, stretch: float = 0.0) -> RelaxedRounding:
        """For a layer; call it outside of inference mode."""
        cell, scheme = problem.cell, problem.scheme
        scale = broadcast_scale(problem.scale, problem.weight).clone()
        return cls(scale, cell.floor.clone(), cell.free.float(), scheme.code_min, scheme.code_max, stretch)

    def start(self, fraction: Tensor) -> Tensor:
        """alpha for which h is the fraction."""
        inner = (fraction + self.stretch) / (1 + 2 * self.stretch)
        return torch.logit(inner.clamp(_MARGIN, 1 - _MARGIN)).clone()

    def relaxed(self, alpha: Tensor) -> Tensor:
        """h."""
        h = torch.sigmoid(alpha)
        return h if self.stretch == 0 else (h * (1 + 2 * self.stretch) - self.stretch).clamp(0, 1)

    def soft_weight(self, h: Tensor) -> Tensor:
        """s * clip(floor + h)."""
        return self.scale * (self.floor + h * self.free).clamp(self.code_min, self.code_max)


def committed(alpha: Tensor, cell: RoundingCell) -> Tensor:
    """int8 codes: the ceiling where alpha >= 0."""
    return torch.where(alpha >= 0, cell.ceil, cell.floor).to(torch.int8)
