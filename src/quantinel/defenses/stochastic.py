"""Stochastic rounding: up with the probability of the fraction, so that every weight is right on average.

A control of the specification of the defenses (4.2): a weight flips with probability u, its distance from the grid in
steps, whatever that does to the layer. Gupta et al., "Deep Learning with Limited Numerical Precision", ICML 2015, is
the usual source of the rule. No deviation; weights on the grid stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from quantinel.quantization.reconstruction import BiasOption, LayerProblem, Needs
from quantinel.validation import require_seeds


@dataclass(frozen=True)
class Stochastic(BiasOption):
    """P(ceiling) = fraction.

    Attributes:
        seed: of the choices, with the run's own.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        require_seeds(self, "seed")

    name: ClassVar[str] = "stochastic"
    needs: ClassVar[Needs] = "weights"

    def choose(self, problem: LayerProblem) -> Tensor:
        """Random codes."""
        cell = problem.cell
        drawn = torch.rand(cell.fraction.shape, generator=problem.generator(self.seed))
        return torch.where(drawn < cell.fraction, cell.ceil, cell.floor).to(torch.int8)
