"""What a BatchNorm knows of the layer before it, whether it was folded away or not."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class FoldedBatchNorm:
    """Statistics of a layer's outputs as training saw them, and the affine map that folding applied to them.

    Folding turned the output a of a layer into ``factor * (a - mean) + shift``; see `kept` where it was not folded.

    Attributes:
        mean: (O,) running mean of a.
        variance: (O,) running variance of a.
        factor: (O,) gamma / sqrt(variance + epsilon); 0 for dead channels.
        shift: (O,) beta.
    """

    mean: Tensor
    variance: Tensor
    factor: Tensor
    shift: Tensor

    @classmethod
    def kept(cls, mean: Tensor, variance: Tensor) -> FoldedBatchNorm:
        """Of a BatchNorm that is left behind its layer: the layer's outputs are a itself."""
        return cls(mean, variance, torch.ones_like(mean), mean)

    def then(self, other: FoldedBatchNorm) -> FoldedBatchNorm:
        """Both in a row: the statistics are those of this one, the map is the composition."""
        shift = other.factor * (self.shift - other.mean) + other.shift
        return FoldedBatchNorm(self.mean, self.variance, other.factor * self.factor, shift)

    def undo(self, outputs: Tensor) -> Tensor:
        """a from outputs (N, O, ...) of the folded layer; dead channels give their running mean."""
        shape = (1, -1, *([1] * (outputs.ndim - 2)))
        alive = self.factor != 0
        inverse = torch.where(alive, 1 / torch.where(alive, self.factor, 1.0), 0.0)
        return (outputs - self.shift.reshape(shape)) * inverse.reshape(shape) + self.mean.reshape(shape)
