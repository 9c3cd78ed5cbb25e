"""Where searches for a trigger begin: probes that moved a network towards a class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from quantinel.inversion.probes import Probe
from quantinel.inversion.search import Form, Start

_WIDENING = 1 / 16
"""Of a start's mask to each side, as a share of the image: a trigger overlaps its probe only in part."""
_FAINTEST, _STRONGEST, _EDGE = 0.01, 0.9, 0.05


def starts_from(
    ratings: Tensor, probes: Sequence[Probe], shape: tuple[int, int, int], form: Form, count: int
) -> list[Start]:
    """The pairs of probe and class that are rated highest.

    Args:
        ratings: (P, K), of every probe and class.
        probes: P of them.
        shape: of the images.
        form: of the triggers to be found.
        count: of pairs, at most.
    """
    order = ratings.flatten().argsort(descending=True)[:count].tolist()
    pairs = (divmod(index, ratings.shape[1]) for index in order)
    return [_start(probes[probe], target, shape, form) for probe, target in pairs]


def _start(probe: Probe, target: int, shape: tuple[int, int, int], form: Form) -> Start:
    """A probe to begin with, its mask widened and neither shut nor open, so that it can move."""
    if form == "additive":
        grey = torch.full((1, *shape), 0.5)
        return Start(target, torch.ones(1, *shape[1:]), (probe.stamp(grey) - grey)[0])
    mask, pattern = probe.as_mask(shape)
    reach = [round(_WIDENING * side) for side in shape[1:]]
    padded = F.pad(mask[None], (reach[1], reach[1], reach[0], reach[0]), mode="replicate")
    wide = F.avg_pool2d(padded, (2 * reach[0] + 1, 2 * reach[1] + 1), 1)[0]
    colour = (mask * pattern).flatten(1).sum(1) / mask.sum().clamp_min(1e-6)
    filled = torch.where(mask > 0, pattern, colour[:, None, None])
    return Start(target, _FAINTEST + (_STRONGEST - _FAINTEST) * wide, filled.clamp(_EDGE, 1 - _EDGE))
