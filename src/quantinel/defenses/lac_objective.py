"""What both forms of LAC train: an offset to the weights of one layer, through straight-through rounding.

Li et al., "Purifying Quantization-conditioned Backdoors via Layer-wise Activation Correction with Distribution
Approximation", ICML 2024. As released (specification of the defenses, 2.2): offset delta = 0 at first, W~ = s
clip(round((W + delta) / s)) with floor(x + 0.5) and straight-through gradients, reconstruction term alone; the commit
rounds half to even. Nothing bounds delta, so codes may move by several steps: this trains the layer again and is no
choice of a neighbour. ``bound`` is this package's own option, in grid steps; 0.5 leaves each weight the two
neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quantinel.defenses.chain_training import ChainOptions, Reconstruction, train_chain
from quantinel.errors import UsageError
from quantinel.quantization.reconstruction import LayerProblem
from quantinel.quantization.rounding import ON_GRID, broadcast_scale, nearest_codes

_INSIDE = 1 - 4 * ON_GRID
"""A bound of half a step must not reach the tie between two codes, in float32, from what counts as on the grid."""


@dataclass(frozen=True, kw_only=True)
class LACOptions(ChainOptions):
    """Options of both forms.

    Attributes:
        bound: largest |delta| in grid steps; None is unbounded, as released.
    """

    bound: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bound is not None and not 0 < self.bound < float("inf"):
            raise UsageError(f"bound is {self.bound!r}; give a positive number of grid steps, or none")


@dataclass(frozen=True)
class _Offset:
    base: Tensor
    scale: Tensor
    code_min: int
    code_max: int

    def weight(self, parameter: Tensor) -> Tensor:
        steps = (self.base + parameter) / self.scale
        straight = steps + (torch.floor(steps + 0.5) - steps).detach()
        return self.scale * straight.clamp(self.code_min, self.code_max)

    def penalty(self, parameter: Tensor, step: int) -> None:
        return None


def correct_activations(problem: LayerProblem, options: LACOptions, reconstruction: Reconstruction) -> Tensor:
    """Train the offset and round; (O, ...) int8. Call it with gradients enabled, outside of inference mode."""
    scale = broadcast_scale(problem.scale, problem.weight).clone()
    objective = _Offset(problem.weight.clone(), scale, problem.scheme.code_min, problem.scheme.code_max)
    limit = None if options.bound is None else options.bound * _INSIDE * scale

    def project(offset: Tensor) -> None:
        if limit is not None:
            offset.copy_(offset.clamp(-limit, limit))

    start = torch.zeros(problem.weight.shape)
    offset = train_chain(problem, options, reconstruction, objective, start, project)
    return nearest_codes(objective.base + offset, problem.scale, problem.scheme)
