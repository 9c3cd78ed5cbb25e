"""Flip a given share of nearest roundings at random: the control that shows whether error guidance matters.

Specification of the defenses, 4.2 and 7: a defense that flips many weights moves the network away from a planted
pattern by that alone. What its guidance is worth is the difference to as many flips at random. So
``as_many_as`` runs another method and takes the share of every layer from what it changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from quantinel.errors import UsageError
from quantinel.quantization.reconstruction import LayerOutcome, LayerProblem, Needs, PreparedMethod, RoundingMethod
from quantinel.validation import require_seeds


@dataclass(frozen=True)
class RandomFlips(PreparedMethod):
    """Nearest rounding, then flips to the other neighbour.

    Attributes:
        fraction: share of a layer's weights to flip; fewer where fewer are off the grid.
        fractions: one share per layer, in execution order, instead of ``fraction``.
        as_many_as: name of a registered method, run with its defaults: as many changed codes per layer as it leaves,
            where that many weights are off the grid. It may need images where random flips need none.
        seed: of the choice, with the run's own.
    """

    fraction: float = 0.1
    fractions: tuple[float, ...] = ()
    as_many_as: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        require_seeds(self, "seed")
        for share in (self.fraction, *self.fractions):
            if not 0 <= share <= 1:
                raise UsageError(f"fraction is {share!r}; give a number from 0 to 1")
        if self.as_many_as:
            _registered(self.as_many_as)
            if self.fractions or self.fraction != type(self).fraction:
                raise UsageError("as_many_as takes the shares of another method; leave fraction and fractions out")

    name: ClassVar[str] = "random-flips"
    needs: ClassVar[Needs] = "weights"

    def rests_on(self) -> tuple[str, ...]:
        """The method that is to be matched."""
        return (self.as_many_as,) if self.as_many_as else ()

    def prepared(self, run: Callable[[RoundingMethod], Sequence[LayerOutcome]]) -> RoundingMethod:
        """With the shares of the method that is to be matched."""
        if not self.as_many_as:
            return self
        fractions = tuple(outcome.changed for outcome in run(_registered(self.as_many_as)))
        return replace(self, fractions=fractions, as_many_as="")

    def choose(self, problem: LayerProblem) -> Tensor:
        """Exactly ``fraction`` of the codes, rounded to whole weights, flipped."""
        if self.fractions and problem.index >= len(self.fractions):
            raise UsageError(
                f"fractions has {len(self.fractions)} entries and the network more layers; give one for each"
            )
        fraction = self.fractions[problem.index] if self.fractions else self.fraction
        cell = problem.cell
        free = cell.free.flatten().nonzero().flatten()
        count = min(len(free), round(fraction * cell.free.numel()))
        chosen = free[torch.randperm(len(free), generator=problem.generator(self.seed))[:count]]
        up = cell.nearest_is_ceil.flatten().clone()
        up[chosen] = ~up[chosen]
        return torch.where(up.reshape(cell.free.shape), cell.ceil, cell.floor).to(torch.int8)


def _registered(name: str) -> RoundingMethod:
    from quantinel.defenses import rounding_method

    return rounding_method(name)
