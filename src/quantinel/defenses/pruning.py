"""Defenses of deployers who prune: which filters or weights go, when the attacker counted on others.

An attack that is conditioned on pruning knows which filters have the smallest norms, and often the rate. These methods
are given the scheme that the deployer wants and choose other masks. Training the pruned network on is a repair
(`quantinel.defenses.repair`) with its zeros kept.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from quantinel.errors import UsageError
from quantinel.quantization.pruning import PruningScheme, layer_rates, prunable


class PruningMethod(Protocol):
    """A frozen dataclass of options with a choice of masks."""

    name: ClassVar[str]

    def masks(
        self, weights: Mapping[str, Tensor], scheme: PruningScheme, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Masks that broadcast against the weights: 0 for what is removed.

        Args:
            weights: (O, ...) by layer name; see `quantinel.quantization.pruning.prunable`.
            scheme: with rates that are not searched.
            generator: source of randomness.
        """
        ...


@torch.no_grad()
def prune_with(method: PruningMethod, module: nn.Module, scheme: PruningScheme, *, seed: int = 0) -> nn.Module:
    """A pruned copy in evaluation mode, its masks chosen by ``method``; ``module`` is not changed.

    Raises:
        UnsupportedError: nothing to prune.
        UsageError: another number of rates than of layers, or rates that have to be searched first.
    """
    pruned = copy.deepcopy(module).eval()
    weights = prunable(pruned, scheme.method)
    for name, mask in method.masks(weights, scheme, torch.Generator().manual_seed(seed)).items():
        weights[name].mul_(mask)
    return pruned


@dataclass(frozen=True)
class Ranking:
    """What is ranked together under a scheme: the filters or weights of a layer, or the weights of the network.

    Attributes:
        sizes: (M,) norms, smallest first to go.
        rate: share to remove.
        shapes: of the masks, by layer; their elements follow each other in ``sizes``.
    """

    sizes: Tensor
    rate: float
    shapes: Mapping[str, torch.Size]

    def masks(self, removed: Tensor) -> dict[str, Tensor]:
        """Masks by layer from the indices that are removed."""
        whole = torch.ones_like(self.sizes)
        whole[removed] = 0.0
        parts = torch.split(whole, [shape.numel() for shape in self.shapes.values()])
        return {name: part.view(shape) for part, (name, shape) in zip(parts, self.shapes.items(), strict=True)}


def rankings(weights: Mapping[str, Tensor], scheme: PruningScheme) -> list[Ranking]:
    """What the scheme ranks.

    Raises:
        UsageError: rates that have to be searched first, or another number of rates than of layers.
    """
    if scheme.searched:
        raise UsageError(f"{scheme.name} names no layer's rate; search them first")
    if scheme.scope == "network":
        sizes = torch.cat([weight.detach().abs().flatten() for weight in weights.values()])
        return [Ranking(sizes, scheme.rates[0], {name: weight.shape for name, weight in weights.items()})]
    found = []
    for (name, weight), rate in zip(weights.items(), layer_rates(scheme, weights).values(), strict=True):
        sizes = weight.detach().abs().flatten(1).sum(1) if scheme.method == "l1-filters" else weight.detach().abs()
        one = torch.Size([len(weight), *([1] * (weight.ndim - 1))])
        shape = one if scheme.method == "l1-filters" else weight.shape
        found.append(Ranking(sizes.flatten(), rate, {name: shape}))
    return found
