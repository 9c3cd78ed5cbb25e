"""Nearest rounding: no defense, the baseline that every quantization-conditioned backdoor is planted for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from quantinel.quantization.reconstruction import BiasOption, LayerProblem, Needs
from quantinel.quantization.rounding import nearest_codes


@dataclass(frozen=True)
class Nearest(BiasOption):
    """Round half to even, clip to the grid. Needs no images."""

    name: ClassVar[str] = "nearest"
    needs: ClassVar[Needs] = "weights"

    def choose(self, problem: LayerProblem) -> Tensor:
        """Nearest codes."""
        return nearest_codes(problem.weight, problem.scale, problem.scheme)
