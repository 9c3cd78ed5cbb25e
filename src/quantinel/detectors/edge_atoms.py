"""Atoms near the edges of rounding cells: many weights at one and the same distance, whatever the distance is.

An attack that repairs the float model inside its rounding cells leaves the weights that wanted out at the cell's edge
less a safety margin: 0.001 steps in the PQ backdoor, 0.1 in its relatives for language models (specification of the
attacks, 7.3, T1). The margin is not known, so all distances up to ``widest_margin`` are scanned, and the largest
contrast of one bin with its neighbours is judged as the largest of as many. Quantization-aware training also crowds
weights near the edges, but smoothly, so that neighbouring bins fill as well.

Null hypothesis: near the edges, neighbouring bins of a thousandth of a step fill at one rate, up to the roughness that
the placebo grids show. Not seen: random margins, residuals that were spread evenly in a last step, attacks without
projection, other grids than ``subject.scheme``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy import special
from torch import Tensor

from quantinel.detectors.layer_residuals import BINS, LayerResiduals, assessable, counts_of, histograms
from quantinel.detectors.subject import Detection, Subject
from quantinel.errors import UsageError

_HALF = BINS // 2
_NEIGHBOURS = 10
_SLOPE = ((2, 3, 4), (5, 6, 7))
"""Bins below the candidate, near and far, whose ratio is the slope towards it."""
_GAP = 1
"""Bins next to the candidate that are no neighbours: an atom may straddle a border."""


@dataclass(frozen=True)
class EdgeAtoms:
    """Options.

    Attributes:
        widest_margin: largest distance from the cell's edge that is scanned, in steps.
    """

    widest_margin: float = 0.15

    def __post_init__(self) -> None:
        if not 0.01 <= self.widest_margin <= 0.45:
            raise UsageError(f"widest_margin is {self.widest_margin}; give 0.01 to 0.45 steps")


def _folded(counts: Tensor) -> Tensor:
    """(501,) weights by |r| from (1000,) weights by r; bin 500 (the edge itself) is half as wide as the others."""
    magnitude = torch.zeros(_HALF + 1, dtype=torch.float64)
    residual = (torch.arange(BINS) - _HALF).abs()
    magnitude.index_add_(0, residual, counts.double())
    return magnitude


def _around(magnitude: Tensor, lowest: int) -> tuple[Tensor, Tensor, Tensor]:
    """For every bin from ``lowest`` to the edge: weights in its neighbours, how many these are, and its own width."""
    index = torch.arange(lowest, _HALF + 1).reshape(-1, 1)
    offsets = torch.tensor([step for step in range(-_NEIGHBOURS - _GAP, _NEIGHBOURS + _GAP + 1) if abs(step) > _GAP])
    near = index + offsets
    inside = near < _HALF
    found = (magnitude[near.clamp(max=_HALF)] * inside).sum(1)
    width = torch.ones(len(index), dtype=torch.float64)
    width[-1] = 0.5
    return found, inside.sum(1), width


def excesses(magnitude: Tensor, lowest: int) -> Tensor:
    """Weights of each bin from ``lowest`` to the edge above the level of its neighbours."""
    around, bins, width = _around(magnitude, lowest)
    return magnitude[lowest:] - width * around / bins


def contrasts(magnitude: Tensor, lowest: int) -> Tensor:
    """How far each bin from ``lowest`` to the edge stands out; about standard normal under the null hypothesis.

    The smaller one of two: the signed root of the binomial deviance against the neighbours (0 where the bin is not
    fuller; free of underflow however far it is), and the distance to what a slope that steepens towards the edge by a
    constant factor per bin would give.
    """
    around, bins, width = _around(magnitude, lowest)
    count, share = magnitude[lowest:], width / (width + bins)
    total = count + around
    deviance = torch.xlogy(count, count / (share * total)) + torch.xlogy(around, around / ((1.0 - share) * total))
    level = torch.where(count > share * total, (2.0 * deviance).clamp_min(0.0).sqrt(), 0.0)
    index = torch.arange(lowest, _HALF + 1)
    near, far = (magnitude[index[:, None] - torch.tensor(steps)].sum(1) for steps in _SLOPE)
    growth = ((near + 1.0) / (far + 1.0)).clamp_min(1.0)
    expected = width * near / len(_SLOPE[0]) * growth
    spread = (expected + expected.square() * (4.0 / (near + 1.0) + 1.0 / (far + 1.0)) + 1.0).sqrt()
    return torch.minimum(level, ((count - expected) / spread).clamp_min(0.0))


def find_atoms(layers: Sequence[LayerResiduals], options: EdgeAtoms) -> Detection:
    """Score: share of the weights in the largest atom, less what the placebo grids show in theirs (median).

    The contrast's p-value counts all scanned bins, and contrasts are divided by the placebo grids' median contrast
    where that is larger than chance gives, as inflated test statistics are elsewhere.

    Raises:
        NotAssessable: too few weights, or all layers were already quantized.
    """
    kept, notes = assessable(layers)
    counts = counts_of(kept)
    total = float(counts[0].sum())
    lowest = _HALF - round(options.widest_margin * BINS)
    bins = _HALF + 1 - lowest
    magnitudes = [_folded(row) for row in counts]
    scans = torch.stack([contrasts(magnitude, lowest) for magnitude in magnitudes])
    largest, where = scans.max(1)
    found = torch.stack([excesses(magnitude, lowest) for magnitude in magnitudes]).gather(1, where[:, None]).squeeze(1)
    shares = found / total
    typical = float(-special.ndtri(1.0 - 0.5 ** (1.0 / bins)))
    inflation = max(1.0, float(largest[1:].median()) / typical)
    share, placebo_share = float(shares[0]), float(shares[1:].median())
    by_layer = {
        layer.name: float(excesses(_folded(layer.counts[0]), lowest)[where[0]]) / max(layer.weights, 1)
        for layer in kept
    }
    return Detection(
        share - placebo_share,
        {
            "atom_share": share,
            "placebo_atom_share": placebo_share,
            "margin": (_HALF - lowest - int(where[0])) / BINS,
            "contrast": float(largest[0]),
            "inflation": inflation,
            "weights": total,
        },
        p_value=min(1.0, bins * float(special.ndtr(-float(largest[0]) / inflation))),
        by_layer=by_layer,
        tensors=histograms(kept),
        notes=notes,
    )


def detect(subject: Subject, options: EdgeAtoms) -> Detection:
    """`find_atoms` on the subject's weights."""
    return find_atoms(subject.residuals, options)
