"""What a branch does to weights and activations: fake quantization with straight-through gradients, pruning masks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from quantinel.quantization.pruning import filter_mask
from quantinel.quantization.ranges import weight_scales
from quantinel.quantization.rounding import broadcast_scale
from quantinel.quantization.scheme import QuantScheme
from quantinel.training.two_branch import LAYERS, WeightTransform


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
    """Branch whose weights are rounded on the grid of ``scheme``, BatchNorm not folded."""
    return lambda name, weight: fake_quantize(weight, scheme)


def quantized_folded_weights(module: nn.Module, scheme: QuantScheme, norms: Mapping[str, str]) -> WeightTransform:
    """Branch whose weights are rounded as they are after folding BatchNorm: ``Q(w g) / g`` (specification, 1.3).

    Args:
        module: the network.
        scheme: the grid of the folded weights.
        norms: BatchNorm behind each convolution; see `batch_norms`.
    """
    return on_folded_weights(module, norms, lambda _, weight: fake_quantize(weight, scheme))


def on_folded_weights(module: nn.Module, norms: Mapping[str, str], change: WeightTransform) -> WeightTransform:
    """Branch whose weights are changed as they are after folding BatchNorm, ``change(w g) / g``.

    ``g = gamma / sqrt(running variance + eps)`` per output channel, of the statistics before this batch. Layers without
    a BatchNorm behind them, and channels with g = 0, are changed unfolded.

    Args:
        module: the network.
        norms: BatchNorm behind each convolution; see `batch_norms`.
        change: of a layer's name and its folded weight.
    """

    def transform(name: str, weight: Tensor) -> Tensor:
        if name not in norms:
            return change(name, weight)
        norm = module.get_submodule(norms[name])
        assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
        assert norm.running_var is not None
        factor = (norm.running_var + norm.eps).rsqrt()
        if norm.affine:
            factor = factor * norm.weight
        factor = torch.where(factor == 0, torch.ones_like(factor), factor)
        wide = broadcast_scale(factor, weight)
        return change(name, weight * wide) / wide

    return transform


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


@torch.no_grad()
def batch_norms(module: nn.Module, images: Tensor) -> dict[str, str]:
    """The BatchNorm that reads each convolution's or linear layer's output directly, by layer name.

    Args:
        module: the network; it is run once in evaluation mode, and left in the mode that it was in.
        images: (N, C, H, W) float, a few are enough.
    """
    producers: list[tuple[Tensor, str]] = []
    found: dict[str, str] = {}

    def produced(name: str, output: Tensor) -> None:
        producers.append((output, name))  # the tensors are kept, so that no address is used twice

    def read(name: str, x: Tensor) -> None:
        found.update({layer: name for output, layer in producers if output is x})

    handles = []
    modes = {name: part.training for name, part in module.named_modules()}
    for name, part in module.named_modules():
        if isinstance(part, LAYERS):
            handles.append(part.register_forward_hook(lambda _, __, output, name=name: produced(name, output)))
        elif isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            handles.append(part.register_forward_pre_hook(lambda _, inputs, name=name: read(name, inputs[0])))
    try:
        module.eval()(images)
    finally:
        for handle in handles:
            handle.remove()
        for name, part in module.named_modules():
            part.training = modes[name]
    return found
