"""Pruning at another rate than the attacker counted on.

The cheapest defense against an attack that is armed for one rate; Tian et al., TIFS 2022, arm for a range of them
(`upper_rate` of `pruning-artifacts`) to beat it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from quantinel.errors import UsageError
from quantinel.quantization.pruning import PruningScheme, pruning_masks
from quantinel.validation import require_types

_LARGEST = 0.99


@dataclass(frozen=True)
class ShiftedPruning:
    """Options.

    Attributes:
        shift: added to every rate that is not 0, in (-1, 1); rates stay in [0, 0.99].
    """

    shift: float = -0.1
    name: ClassVar[str] = "shifted-pruning"

    def __post_init__(self) -> None:
        require_types(self)
        if not -1 < self.shift < 1:
            raise UsageError(f"shift is {self.shift!r}; give a number above -1 and below 1")

    def masks(
        self, weights: Mapping[str, Tensor], scheme: PruningScheme, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Masks of the shifted scheme; nothing is drawn."""
        rates = tuple(min(max(rate + self.shift, 0.0), _LARGEST) if rate else 0.0 for rate in scheme.rates)
        return pruning_masks(weights, dataclasses.replace(scheme, rates=rates))
