"""What nearest rounding adds to the weights, and control copies whose errors have the same sizes and random signs.

For a network that was not made for the grid, on which side of a weight the nearest grid point lies is a matter of
chance. So behaviour under w + r with r = Q(w) - w is one draw from the behaviour under w + e r, with a random sign e
for every weight. A backdoor that wakes under rounding needs the signs as they are (specification of the attacks, 7.3:
re-rounding is not evaded by shaping the residuals' histogram).

Two kinds of weights break the symmetry in any network. Clipped weights always move towards zero, so they keep their
sign in all copies. Weights that round to zero move towards zero as well; they stay in the draw, because joint losses
hide much of their backdoor there, and thresholds measured on harmless networks carry what that costs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quantinel.model.graph import FloatGraph
from quantinel.quantization.quantized_model import QuantizedModel
from quantinel.quantization.rounding import ON_GRID, broadcast_scale


@dataclass(frozen=True)
class RoundingErrors:
    """Q(w) - w of every quantized weight.

    Attributes:
        graph: the float network.
        errors: by buffer of the weight, its shape; zero for weights on the grid.
        clipped: by buffer, bool, weights whose error is more than half a step.
        moved: share of weights that rounding changes.
    """

    graph: FloatGraph
    errors: Mapping[str, Tensor]
    clipped: Mapping[str, Tensor]
    moved: float

    def exaggerated(self, factor: float) -> RoundingErrors:
        """The same errors, ``factor`` times as long.

        What was trained into the signs grows along them in one direction, while the errors of control copies go on
        pointing anywhere; with exchangeable signs the copies stay what they are, controls, at any length.
        """
        return replace(self, errors={name: factor * error for name, error in self.errors.items()})

    def rounded(self) -> dict[str, Tensor]:
        """Weights after nearest rounding (of errors as long as these), by buffer."""
        return self._added(self.errors)

    def randomised(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Weights of a control copy, by buffer."""
        return self._added({name: self.with_random_signs(name, generator) for name in self.errors})

    def with_random_signs(self, name: str, generator: torch.Generator) -> Tensor:
        """Errors of one weight with random signs, except where it is clipped."""
        error = self.errors[name]
        signs = torch.randint(0, 2, error.shape, generator=generator, dtype=torch.int8) * 2 - 1
        return error * torch.where(self.clipped[name], 1, signs)

    def _added(self, errors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: self.graph.module.get_buffer(name) + error for name, error in errors.items()}


def rounding_errors(graph: FloatGraph, nearest: QuantizedModel) -> RoundingErrors:
    """Measure the errors.

    Args:
        graph: the float network.
        nearest: its codes under nearest rounding.
    """
    errors, clipped, moved, total = {}, {}, 0, 0
    for layer in graph.layers:
        quantized, weight = nearest.layers[layer.name], graph.weight(layer)
        scale = broadcast_scale(quantized.scale, weight)
        error = quantized.weight() - weight
        error = torch.where(error.abs() > ON_GRID * scale, error, 0.0)
        errors[layer.weight] = error
        clipped[layer.weight] = error.abs() > (0.5 + ON_GRID) * scale
        moved += int((error != 0).sum())
        total += error.numel()
    return RoundingErrors(graph, errors, clipped, moved / max(total, 1))
