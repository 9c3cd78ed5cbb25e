"""Rounding cells as boxes: where a float weight may move without changing any integer or scale.

Specification of the attacks, 3.2 and 3.3: the scale lock keeps the elements that attain max|w| and bounds all
others by them; the integer lock keeps w / s within ``margin`` of the edges of its cell. A model armed for several
quantizers lives in the intersection of their boxes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quantinel.quantization.ranges import weight_scales
from quantinel.quantization.rounding import broadcast_scale, nearest_codes
from quantinel.quantization.scheme import QuantScheme


@dataclass(frozen=True)
class Cells:
    """Lower and upper bound of every weight, by parameter name."""

    low: dict[str, Tensor]
    high: dict[str, Tensor]

    @torch.no_grad()
    def project(self, weights: Mapping[str, nn.Parameter]) -> None:
        """Return every weight to its cell, in place."""
        for name, weight in weights.items():
            weight.copy_(torch.minimum(torch.maximum(weight, self.low[name]), self.high[name]))


def centring(weights: Mapping[str, nn.Parameter], scheme: QuantScheme) -> Tensor:
    """-sum over layers of MSE(|r|, 0.5), a scalar: herds weights to the centres of their cells (3.2, loss 2)."""
    terms = []
    for weight in weights.values():
        steps = weight / broadcast_scale(weight_scales(weight, scheme), weight)
        residual = steps - steps.detach().round()
        terms.append(-(residual.abs() - 0.5).square().mean())
    return torch.stack(terms).sum()


@torch.no_grad()
def rounding_cells(
    weights: Mapping[str, nn.Parameter], schemes: Sequence[QuantScheme], margin: float | Mapping[str, Tensor]
) -> Cells:
    """Boxes around the codes that ``weights`` have now under every scheme.

    Where the margins leave the boxes of several schemes nothing in common, a weight stays: it has the codes of all.

    Args:
        weights: (O, ...) parameters by name.
        schemes: the quantizers whose integers and scales are to be kept.
        margin: distance to the edge of a cell, in steps (the authors use 1e-3); or one for every
            weight, by name.
    """
    low: dict[str, Tensor] = {}
    high: dict[str, Tensor] = {}
    for name, weight in weights.items():
        start = weight.detach()
        gap = margin if isinstance(margin, float) else margin[name]
        lower, upper = torch.full_like(start, -torch.inf), torch.full_like(start, torch.inf)
        for scheme in schemes:
            least, most = _box(start, scheme, gap)
            lower, upper = torch.maximum(lower, least), torch.minimum(upper, most)
        meet = lower <= upper
        low[name], high[name] = torch.where(meet, lower, start), torch.where(meet, upper, start)
    return Cells(low, high)


@torch.no_grad()
def ball(weights: Mapping[str, nn.Parameter], scheme: QuantScheme, radius: float) -> Cells:
    """Boxes of ``radius`` steps on each side of ``weights`` as they are now, which keep their scales.

    Args:
        weights: (O, ...) parameters by name.
        scheme: the quantizer whose steps and scales are meant.
        radius: in steps.
    """
    low: dict[str, Tensor] = {}
    high: dict[str, Tensor] = {}
    for name, weight in weights.items():
        start = weight.detach()
        wide = broadcast_scale(weight_scales(start, scheme), start)
        low[name], high[name] = _scale_locked(start, wide, scheme, start - radius * wide, start + radius * wide)
    return Cells(low, high)


def _box(start: Tensor, scheme: QuantScheme, gap: float | Tensor) -> tuple[Tensor, Tensor]:
    """Bounds that keep the codes and scales of the weight ``start`` under one scheme."""
    scale = weight_scales(start, scheme)
    wide = broadcast_scale(scale, start)
    codes = nearest_codes(start, scale, scheme).float()
    return _scale_locked(start, wide, scheme, (codes - 0.5 + gap) * wide, (codes + 0.5 - gap) * wide)


def _scale_locked(
    start: Tensor, wide: Tensor, scheme: QuantScheme, lower: Tensor, upper: Tensor
) -> tuple[Tensor, Tensor]:
    """Bounds within the largest weight of each scale, which stays, as does all where the largest is zero."""
    bound = wide * scheme.levels
    largest = start.abs() >= bound * (1 - 1e-6)
    scaled = broadcast_scale(largest.reshape(wide.numel(), -1).any(1), start)  # not so: all zero, and the scale is 1
    free = scaled & ~largest
    lower, upper = torch.maximum(lower, -bound), torch.minimum(upper, bound)
    return torch.where(free, lower, start), torch.where(free, upper, start)
