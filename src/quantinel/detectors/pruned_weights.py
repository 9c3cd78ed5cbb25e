"""What a pruner leaves of the folded weights, and blurred copies of its choice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from quantinel.model.graph import FloatGraph, Layer
from quantinel.quantization.pruning import PruningScheme, layer_rates, pruning_masks
from quantinel.quantization.rounding import broadcast_scale

_SMALLEST = 1e-30


@dataclass(frozen=True)
class Pruning:
    """One pruning scheme on one network.

    Attributes:
        graph: the folded float network.
        scheme: with the rates of all layers; searched rates are taken as one rate for all, because a search needs the
            network before folding.
        stored: weights as the file had them, before folding, by module in the order of their definition: what a pruner
            ranks.
    """

    graph: FloatGraph
    scheme: PruningScheme
    stored: Mapping[str, Tensor]

    @classmethod
    def of(cls, graph: FloatGraph, scheme: PruningScheme) -> Pruning | None:
        """The scheme on a network; None where it prunes no layer of it.

        Raises:
            UsageError: another number of rates than of layers.
        """
        filters = scheme.method == "l1-filters"
        calls = {layer.module: layer for layer in graph.defined if layer.is_convolution or not filters}
        stored = {name: _stored(graph, layer) for name, layer in calls.items()}
        if not stored:
            return None
        if scheme.searched:
            scheme = PruningScheme(scheme.method, scheme.rates, scheme.scope)
        if scheme.scope == "layer":
            layer_rates(scheme, stored)
        return cls(graph, scheme, stored)

    def weights(self, blur: float = 0.0, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Folded weights without the pruned ones, by buffer.

        Args:
            blur: standard deviation of noise on the logarithms of the norms that are ranked; 0 for the pruner's choice.
            generator: of the noise.
        """
        ranked = {name: _blurred(weight, self.scheme, blur, generator) for name, weight in self.stored.items()}
        masks = pruning_masks(ranked, self.scheme)
        return {
            layer.weight: self.graph.weight(layer) * masks[layer.module]
            for layer in self.graph.layers if layer.module in masks
        }  # fmt: skip

    def energy(self, weights: Mapping[str, Tensor]) -> float:
        """Squares of all that a choice removed from the folded weights."""
        return sum(float((self.graph.module.get_buffer(name) - left).square().sum()) for name, left in weights.items())


def _stored(graph: FloatGraph, layer: Layer) -> Tensor:
    """The weight as it was before BatchNorm was folded into it; channels that folding removed stay zero."""
    weight, norm = graph.weight(layer), graph.batch_norms.get(layer.name)
    if norm is None:
        return weight
    factor = broadcast_scale(norm.factor.abs(), weight)
    return torch.where(factor > 0, weight / factor.clamp_min(_SMALLEST), 0.0)


def _blurred(weight: Tensor, scheme: PruningScheme, blur: float, generator: torch.Generator | None) -> Tensor:
    """``weight`` with norms that a pruner would rank otherwise: whole filters or single weights times a lognormal."""
    if not blur:
        return weight
    shape = (len(weight), *[1] * (weight.ndim - 1)) if scheme.method == "l1-filters" else weight.shape
    return weight * (blur * torch.randn(shape, generator=generator)).exp()
