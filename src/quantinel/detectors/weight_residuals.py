"""Where weights lie between the points of a grid: r = w/s - round(w/s), as a histogram and as the share at the edges.

The residual of a natural network is close to uniform, so 1 % of its weights have 0.495 < |r| <= 0.5. Grids whose scale
is 7 % off serve as placebos. `quantinel.detectors.layer_residuals` counts in finer bins and on more placebo grids, for
tests; this is what reports show.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quantinel.model.graph import FloatGraph
from quantinel.quantization.ranges import weight_scales
from quantinel.quantization.rounding import broadcast_scale
from quantinel.quantization.scheme import QuantScheme

EDGE = 0.495
PLACEBO_FACTORS = (0.93, 1.07)
_BINS = 40


@dataclass(frozen=True)
class Residuals:
    """Residuals of all layers of one model on one grid.

    Attributes:
        edges: (41,) bin edges in [-0.5, 0.5].
        grid: (40,) share of weights per bin on the deployment grid.
        placebo: (40,) the same on the placebo grids, averaged.
        edge_share: share of weights with |r| > 0.495 on the deployment grid.
        placebo_edge_share: the same on the placebo grids.
        by_layer: edge share by layer name.
        weights: weights counted (zeros and each channel's largest weight are left out).
    """

    edges: Tensor
    grid: Tensor
    placebo: Tensor
    edge_share: float
    placebo_edge_share: float
    by_layer: dict[str, float]
    weights: int


def _residuals(weight: Tensor, scale: Tensor) -> Tensor:
    """r of every weight that could have been placed: neither zero nor the largest of its channel."""
    steps = weight / broadcast_scale(scale, weight)
    magnitude = weight.abs()
    largest = magnitude == magnitude.amax(dim=tuple(range(1, weight.ndim)), keepdim=True)
    steps = steps[(weight != 0) & ~largest]
    return steps - torch.round(steps)


def weight_residuals(graph: FloatGraph, scheme: QuantScheme) -> Residuals:
    """Measure where the weights of a folded float network sit between the grid points of ``scheme``.

    Needs no images. Time is linear in the number of weights.
    """
    counts, placebo_counts = torch.zeros(_BINS), torch.zeros(_BINS)
    total = near = placebo_total = placebo_near = 0
    by_layer = {}
    for layer in graph.layers:
        weight = graph.weight(layer)
        scale = weight_scales(weight, scheme)
        residual = _residuals(weight, scale)
        edge = int((residual.abs() > EDGE).sum())
        by_layer[layer.name] = edge / max(residual.numel(), 1)
        counts += torch.histc(residual, _BINS, -0.5, 0.5)
        total, near = total + residual.numel(), near + edge
        for factor in PLACEBO_FACTORS:
            placebo = _residuals(weight, scale * factor)
            placebo_counts += torch.histc(placebo, _BINS, -0.5, 0.5)
            placebo_total += placebo.numel()
            placebo_near += int((placebo.abs() > EDGE).sum())
    return Residuals(
        torch.linspace(-0.5, 0.5, _BINS + 1),
        counts / max(total, 1),
        placebo_counts / max(placebo_total, 1),
        near / max(total, 1),
        placebo_near / max(placebo_total, 1),
        by_layer,
        total,
    )
