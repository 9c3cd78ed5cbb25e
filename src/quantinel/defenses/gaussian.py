"""Gaussian noise on the weights before they are rounded to nearest.

Egashira et al., "Exploiting LLM Quantization", NeurIPS 2024: the defense that the attack's own paper proposes (i.i.d.
noise of one absolute sigma on every parameter; specification of the defenses, 5.1, read in the released code). sigma
= 1e-3 was the best value for their language model; that says nothing about a convolutional network, so ``unit =
"step"`` measures sigma in steps of each channel's grid (0.5 is the half interval of the rounding; an unreviewed
follow-up takes the median of the half intervals of a layer, or of the network, instead of each channel's own).

Deviations: only quantized weights get noise (biases and activations have grids of their own here), and the grid is
that of the weights without noise, because scales are fixed before integers are chosen; published code quantizes the
noisy weights from scratch. Noise may move a weight beyond its two neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from quantinel.quantization.reconstruction import BiasOption, LayerProblem, Needs
from quantinel.quantization.rounding import broadcast_scale, nearest_codes
from quantinel.validation import require_choice, require_non_negative, require_seeds


@dataclass(frozen=True)
class Gaussian(BiasOption):
    """Round W + sigma N(0, 1).

    Attributes:
        sigma: standard deviation of the noise.
        unit: "weight" is absolute, as published; "step" is a share of the channel's grid step.
        seed: of the noise, with the run's own.
    """

    sigma: float = 1e-3
    unit: Literal["weight", "step"] = "weight"
    seed: int = 0

    def __post_init__(self) -> None:
        require_non_negative(self, "sigma")
        require_seeds(self, "seed")
        require_choice(self, "unit", ("weight", "step"))

    name: ClassVar[str] = "gaussian"
    needs: ClassVar[Needs] = "weights"

    def choose(self, problem: LayerProblem) -> Tensor:
        """Nearest codes of the noisy weights."""
        noise = self.sigma * torch.randn(problem.weight.shape, generator=problem.generator(self.seed))
        if self.unit == "step":
            noise = noise * broadcast_scale(problem.scale, problem.weight)
        return nearest_codes(problem.weight + noise, problem.scale, problem.scheme)
