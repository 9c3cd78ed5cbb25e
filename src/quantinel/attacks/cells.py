"""Rounding cells as boxes: where a float weight may move without changing any integer or scale.

Specification of the attacks, 3.2 and 3.3: the scale lock keeps the elements that attain max|w| and bounds all
others by them; the integer lock keeps w / s within ``margin`` of the edges of its cell. A model armed for several
quantizers lives in the intersection of their boxes.

w is what is deployed: normalisation is folded into weights before they are rounded. With one scale per channel,
BatchNorm scales w and s alike and leaves the boxes of the unfolded weights as they are; with one scale per tensor, and
behind a LayerNorm, boxes are made around folded weights and mapped back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from quantinel.quantization.ranges import weight_scales
from quantinel.quantization.rounding import broadcast_scale, nearest_codes
from quantinel.quantization.scheme import QuantScheme
from quantinel.training.folding import NOTHING_FOLDED, FoldedNorms


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


def centring(weights: Mapping[str, nn.Parameter], scheme: QuantScheme, norms: FoldedNorms = NOTHING_FOLDED) -> Tensor:
    """-sum over layers of MSE(|r|, 0.5), a scalar: herds weights to the centres of their cells (3.2, loss 2)."""
    terms = []
    for name, weight in weights.items():
        factor = _factor(name, weight, scheme, norms)
        deployed = weight if factor is None else weight * factor
        steps = deployed / broadcast_scale(weight_scales(deployed, scheme), deployed)
        residual = steps - steps.detach().round()
        terms.append(-(residual.abs() - 0.5).square().mean())
    return torch.stack(terms).sum()


@torch.no_grad()
def rounding_cells(
    weights: Mapping[str, nn.Parameter],
    schemes: Sequence[QuantScheme],
    margin: float | Mapping[str, Tensor],
    norms: FoldedNorms = NOTHING_FOLDED,
) -> Cells:
    """Boxes around the codes that ``weights`` have now under every scheme.

    Where the margins leave the boxes of several schemes nothing in common, a weight stays: it has the codes of all.

    Args:
        weights: (O, ...) parameters by name.
        schemes: the quantizers whose integers and scales are to be kept.
        margin: distance to the edge of a cell, in steps (the authors use 1e-3); or one for every
            weight, by name.
        norms: what deployment folds into the weights before it rounds them; `constants` must stay as they are now.
    """
    low: dict[str, Tensor] = {}
    high: dict[str, Tensor] = {}
    for name, weight in weights.items():
        start = weight.detach()
        gap = margin if isinstance(margin, float) else margin[name]
        lower, upper = torch.full_like(start, -torch.inf), torch.full_like(start, torch.inf)
        for scheme in schemes:
            least, most = _bounds(start, _factor(name, start, scheme, norms), scheme, partial(_cell, gap=gap))
            lower, upper = torch.maximum(lower, least), torch.minimum(upper, most)
        meet = lower <= upper
        low[name], high[name] = torch.where(meet, lower, start), torch.where(meet, upper, start)
    return Cells(low, high)


@torch.no_grad()
def ball(
    weights: Mapping[str, nn.Parameter], scheme: QuantScheme, radius: float, norms: FoldedNorms = NOTHING_FOLDED
) -> Cells:
    """Boxes of ``radius`` steps on each side of ``weights`` as they are now, which keep their scales.

    Args:
        weights: (O, ...) parameters by name.
        scheme: the quantizer whose steps and scales are meant.
        radius: in steps.
        norms: as in `rounding_cells`.
    """
    low: dict[str, Tensor] = {}
    high: dict[str, Tensor] = {}
    for name, weight in weights.items():
        start = weight.detach()
        near = partial(_near, radius=radius)
        low[name], high[name] = _bounds(start, _factor(name, start, scheme, norms), scheme, near)
    return Cells(low, high)


def constants(schemes: Sequence[QuantScheme], norms: FoldedNorms) -> list[nn.Parameter]:
    """The gammas that cells depend on: another gamma is another grid."""
    behind = norms.behind.values() if any(scheme.granularity == "tensor" for scheme in schemes) else ()
    return [norm.weight for norm in (*behind, *norms.before.values()) if norm.weight is not None]


@torch.no_grad()
def _factor(name: str, weight: Tensor, scheme: QuantScheme, norms: FoldedNorms) -> Tensor | None:
    """What deployment multiplies the parameter ``name`` by, as far as the codes of ``scheme`` depend on it."""
    return norms.factor(name.removesuffix(".weight"), weight, outputs=scheme.granularity == "tensor")


Around = Callable[[Tensor, Tensor, QuantScheme], tuple[Tensor, Tensor]]
"""``around(deployed weight, scale per row, scheme)`` -> bounds of the deployed weight."""


def _cell(deployed: Tensor, scale: Tensor, scheme: QuantScheme, gap: float | Tensor) -> tuple[Tensor, Tensor]:
    """What rounds to the codes of ``deployed``, without ``gap`` steps at either edge."""
    codes, wide = nearest_codes(deployed, scale, scheme).float(), broadcast_scale(scale, deployed)
    return (codes - 0.5 + gap) * wide, (codes + 0.5 - gap) * wide


def _near(deployed: Tensor, scale: Tensor, scheme: QuantScheme, radius: float) -> tuple[Tensor, Tensor]:
    reach = radius * broadcast_scale(scale, deployed)
    return deployed - reach, deployed + reach


def _bounds(start: Tensor, factor: Tensor | None, scheme: QuantScheme, around: Around) -> tuple[Tensor, Tensor]:
    """Bounds of a weight: ``around`` what is deployed, and within the largest weight of its scale.

    The largest weight of each scale stays. So does all that has no largest one, which is all zero and of scale 1 by
    convention, and what folding multiplies by zero.

    Args:
        start: (O, ...), unfolded.
        factor: what folding multiplies it by; None for 1.
        scheme: the grid.
        around: gives bounds of the deployed weight.
    """
    deployed = start if factor is None else start * factor
    scale = weight_scales(deployed, scheme)
    bound = broadcast_scale(scale, deployed) * scheme.levels
    largest = deployed.abs() >= bound * (1 - 1e-6)
    free = broadcast_scale(largest.reshape(len(scale), -1).any(1), start) & ~largest
    lower, upper = around(deployed, scale, scheme)
    lower, upper = torch.maximum(lower, -bound), torch.minimum(upper, bound)
    if factor is not None:
        free = free & (factor != 0)
        ends = lower / factor, upper / factor
        lower, upper = torch.minimum(*ends), torch.maximum(*ends)
    return torch.where(free, lower, start), torch.where(free, upper, start)
