"""Dithered pruning: near the threshold, chance decides which filters or weights go.

The counterpart of stochastic rounding for pruning. As many are removed as the scheme says, but those whose rank lies
within ``band`` of the cut are drawn at random, so that an attacker who placed filters near it cannot know the set. An
addition of this package: no paper defines it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from quantinel.defenses.pruning import rankings
from quantinel.quantization.pruning import PruningScheme, removed
from quantinel.validation import require_non_negative


@dataclass(frozen=True)
class DitheredPruning:
    """Options.

    Attributes:
        band: half-width of the random region, as a share of what is removed; 0 changes nothing.
    """

    band: float = 0.5
    name: ClassVar[str] = "dithered-pruning"

    def __post_init__(self) -> None:
        require_non_negative(self, "band")

    def masks(
        self, weights: Mapping[str, Tensor], scheme: PruningScheme, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Masks that remove as many as the scheme, at random around its cut."""
        found: dict[str, Tensor] = {}
        for ranking in rankings(weights, scheme):
            order = ranking.sizes.argsort(stable=True)
            cut = removed(ranking.rate, len(order))
            width = math.ceil(self.band * cut)
            low, high = max(0, cut - width), min(len(order), cut + width)
            drawn = torch.randperm(high - low, generator=generator)[: cut - low]
            found |= ranking.masks(torch.cat([order[:low], order[low:high][drawn]]))
        return found
