"""Nearest rounding: no defense, the baseline that every quantization-conditioned backdoor is planted for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from quantinel.quantization.reconstruction import LayerProblem
from quantinel.quantization.rounding import nearest_codes


@dataclass(frozen=True)
class Nearest:
    """Round half to even, clip to the grid. Needs no images."""

    name: ClassVar[str] = "nearest"
    needs: ClassVar[Literal["weights"]] = "weights"

    def choose(self, problem: LayerProblem) -> Tensor:
        """Nearest codes."""
        return nearest_codes(problem.weight, problem.scale, problem.scheme)
