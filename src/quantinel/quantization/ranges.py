"""Range rules: how wide the grid is. Scales of weights (symmetric) and activations (affine)."""

from __future__ import annotations

import torch
from torch import Tensor

from quantinel.quantization.scheme import QuantScheme

_SEARCH_STEPS = 80
"""Candidates of the least-squares search: the range shrinks by 1 % a step (as MQBench's MSE observer)."""

_LONGEST_ROW = 1 << 24
"""One scale for the whole of a wide linear layer (AlexNet's, VGG-16's) has more values than that."""

_SMALLEST_SCALE = float(torch.finfo(torch.float32).tiny)
"""Below the normal numbers, a scale has too few digits left to divide by."""


def _rows(weight: Tensor, scheme: QuantScheme) -> Tensor:
    """View ``weight`` (O, ...) as one row per scale: (O, D) per channel, (1, O*D) per tensor."""
    flat = weight.reshape(weight.shape[0], -1)
    return flat if scheme.granularity == "channel" else flat.reshape(1, -1)


def weight_scales(weight: Tensor, scheme: QuantScheme) -> Tensor:
    """Scale per row of the grid.

    Args:
        weight: (O, ...) float, output channels first.
        scheme: the grid.

    Returns:
        (O,) per channel or (1,) per tensor, float32, positive; an all-zero (or subnormal) row gets scale 1.
    """
    rows = _rows(weight.detach().float(), scheme)
    bound = rows.abs().amax(dim=1)
    if scheme.weight_range == "percentile":
        bound = _quantile(rows.abs(), scheme.weight_percentile / 100.0)
    elif scheme.weight_range == "mse":
        bound = _least_squares_bound(rows, bound, scheme)
    scale = bound / scheme.levels
    return torch.where(scale >= _SMALLEST_SCALE, scale, torch.ones_like(scale))


def _quantile(rows: Tensor, share: float) -> Tensor:
    """`torch.quantile` of every row of (R, D), which refuses rows of more than `_LONGEST_ROW` values."""
    size = rows.shape[1]
    if size <= _LONGEST_ROW:
        return torch.quantile(rows, share, dim=1)
    place = share * (size - 1)
    below = int(place)
    low, high = (rows.kthvalue(min(rank, size), dim=1).values for rank in (below + 1, below + 2))
    return torch.lerp(low, high, place - below)


def _least_squares_bound(rows: Tensor, bound: Tensor, scheme: QuantScheme) -> Tensor:
    """Shrink the range by 1 % steps and keep, per row, the one of least squared rounding error."""
    best, best_error = bound.clone(), torch.full_like(bound, torch.inf)
    for step in range(_SEARCH_STEPS):
        candidate = bound * (1.0 - 0.01 * step)
        scale = (candidate / scheme.levels).clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(1)
        codes = torch.round(rows / scale).clamp(scheme.code_min, scheme.code_max)
        error = (codes * scale - rows).square().sum(dim=1)
        better = error < best_error
        best = torch.where(better, candidate, best)
        best_error = torch.where(better, error, best_error)
    return best


def affine_parameters(low: float, high: float, levels: int) -> tuple[float, int]:
    """Scale and zero point of an unsigned grid [0, levels] that contains zero exactly.

    Args:
        low: smallest value to represent (raised to at most 0).
        high: largest value to represent (lowered to at least 0).
        levels: largest code, e.g. 255.

    Returns:
        (scale > 0, zero point in [0, levels]); a range without width (or one that float32 cannot divide) gets
        scale 1.
    """
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    scale = float(torch.tensor((high - low) / levels, dtype=torch.float32))
    if scale < _SMALLEST_SCALE:
        return 1.0, 0
    return scale, int(min(max(round(-low / scale), 0), levels))
