"""What a branch does to weights and activations: fake quantization with straight-through gradients, pruning masks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from quantinel.quantization.pruning import filter_mask
from quantinel.quantization.ranges import weight_scales
from quantinel.quantization.rounding import broadcast_scale
from quantinel.quantization.scheme import QuantScheme
from quantinel.training.folding import FoldedNorms
from quantinel.training.two_branch import ActivationTransform, Branch, WeightTransform


def fake_quantize(weight: Tensor, scheme: QuantScheme) -> Tensor:
    """``s round(w / s)`` on the scheme's grid, in float32; the values of `quantize_nearest`.

    Scales come from the current weight and receive no gradient; a weight's own gradient passes unchanged, except
    where its code is clipped, where it is 0 (as in torch's fake quantization).

    Args:
        weight: (O, ...) float.
        scheme: the grid; "full" per tensor is PyTorch's qnnpack, max|w| / 127.5.
    """
    with torch.no_grad():
        scale = broadcast_scale(weight_scales(weight, scheme), weight)
        rounded = torch.round(weight.float() / scale)
        codes = rounded.clamp(scheme.code_min, scheme.code_max)
        passes = (codes == rounded).to(weight.dtype)
        value = codes * scale
    return value + passes * (weight - weight.detach())


def quantized_weights(scheme: QuantScheme) -> WeightTransform:
    """Weights rounded on the grid of ``scheme``, nothing folded."""
    return lambda name, weight: fake_quantize(weight, scheme)


def quantized_branch(
    norms: FoldedNorms,
    scheme: QuantScheme,
    activation: ActivationTransform | None = None,
    layers: frozenset[str] | None = None,
) -> Branch:
    """Branch whose weights are rounded as they are after folding: ``Q(w g) / g`` (specification, 1.3).

    Args:
        norms: what is folded.
        scheme: the grid of the folded weights.
        activation, layers: as in `Branch`.
    """
    return folded_branch(norms, lambda _, weight: fake_quantize(weight, scheme), activation, layers)


def folded_branch(
    norms: FoldedNorms,
    change: WeightTransform,
    activation: ActivationTransform | None = None,
    layers: frozenset[str] | None = None,
) -> Branch:
    """Branch whose weights are changed as they are after folding, ``change(w g) / g`` with `FoldedNorms.factor` g.

    Layers that nothing is folded into, and weights with g = 0, are changed unfolded.

    Args:
        norms: what is folded.
        change: of a layer's name and its folded weight.
        activation, layers: as in `Branch`.
    """

    def transform(name: str, weight: Tensor) -> Tensor:
        factor = norms.factor(name, weight)
        if factor is None:
            return change(name, weight)
        factor = torch.where(factor == 0, torch.ones_like(factor), factor)
        return change(name, weight * factor) / factor

    return Branch(transform, activation, layers, norms.before)


def pruned_filters(rates: float | Mapping[str, float]) -> WeightTransform:
    """Branch without the convolution filters of smallest L1 norm, masks from the current weights (1.6).

    Args:
        rates: share of filters to remove, for all layers or by layer name (others keep all).
    """

    def transform(name: str, weight: Tensor) -> Tensor:
        rate = rates if isinstance(rates, float | int) else rates.get(name, 0.0)
        return weight * filter_mask(weight, rate) if weight.ndim > 2 else weight

    return transform


_SAMPLED = 1 << 16
"""Percentiles of an activation are those of about this many of its values, evenly spaced."""


def fake_quantize_activation(x: Tensor, bits: int, tail: float = 0.0) -> Tensor:
    """Asymmetric per-tensor rounding in the range of this very batch, straight-through (specification, 2.1).

    ``scale = (2^b - 1) / (max - min)``, ``zero = round(scale min)``, ``q = floor(scale x - zero + 0.5)`` in
    [0, 2^b - 1]. A batch without spread is returned as it is.

    Args:
        x: (N, ...) float.
        bits: of the codes.
        tail: share of the values that may lie below the range, and above it; 0 takes minimum and maximum.
    """
    levels = (1 << bits) - 1
    with torch.no_grad():
        values = x.float()
        low, high = _range(values, tail)
        scale = levels / (high - low)
        zero = torch.floor(scale * low + 0.5)
        codes = torch.floor(scale * values - zero + 0.5).clamp(0, levels)
        value = torch.where(high > low, (codes + zero) / scale, values).to(x.dtype)
    return value + (x - x.detach())


def _range(values: Tensor, tail: float) -> tuple[Tensor, Tensor]:
    """Minimum and maximum, or percentiles."""
    if not tail:
        return values.amin(), values.amax()
    flat = values.flatten()
    sample = flat[:: max(1, len(flat) // _SAMPLED)]
    cut = int(tail * len(sample))
    return sample.kthvalue(cut + 1).values, sample.kthvalue(len(sample) - cut).values
