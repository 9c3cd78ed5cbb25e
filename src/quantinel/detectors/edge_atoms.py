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

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor

from quantinel.detectors.layer_residuals import BINS, LayerResiduals, assessable, counts_of, histograms
from quantinel.detectors.subject import Detection, Subject
from quantinel.errors import UsageError

_HALF = BINS // 2
_NEIGHBOURS = 10
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


@dataclass(frozen=True)
class _Peak:
    """The bin of largest contrast: its index in |r|, the weights above the neighbours' level, and the contrast."""

    index: int
    excess: float
    z: float


def _folded(counts: Tensor) -> Tensor:
    """(501,) weights by |r| from (1000,) weights by r; bin 500 (the edge itself) is half as wide as the others."""
    magnitude = torch.zeros(_HALF + 1, dtype=torch.float64)
    residual = (torch.arange(BINS) - _HALF).abs()
    magnitude.index_add_(0, residual, counts.double())
    return magnitude


def _neighbours(index: int) -> tuple[list[int], float]:
    """Bins around one, and its width in units of theirs."""
    low, high = index - _NEIGHBOURS - _GAP, min(index + _NEIGHBOURS + _GAP, _HALF - 1)
    near = [other for other in range(low, high + 1) if abs(other - index) > _GAP]
    return near, 0.5 if index == _HALF else 1.0


def _excess(magnitude: Tensor, index: int) -> float:
    """Weights in a bin above the level of its neighbours."""
    near, width = _neighbours(index)
    return float(magnitude[index] - width * magnitude[near].mean())


def _peak(magnitude: Tensor, lowest: int) -> _Peak:
    """Scan the bins from ``lowest`` to the edge."""
    best = _Peak(_HALF, 0.0, 0.0)
    for index in range(lowest, _HALF + 1):
        near, width = _neighbours(index)
        z = _contrast(float(magnitude[index]), float(magnitude[near].sum()), width / (width + len(near)))
        if z > best.z:
            best = _Peak(index, _excess(magnitude, index), z)
    return best


def _contrast(count: float, around: float, share: float) -> float:
    """Signed root of the binomial deviance of ``count`` among ``count + around``; standard normal under the null."""
    total = count + around
    if total == 0 or count <= share * total:
        return 0.0
    deviance = count * math.log(count / (share * total))
    if around:
        deviance += around * math.log(around / ((1.0 - share) * total))
    return math.sqrt(2.0 * max(deviance, 0.0))


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
    peaks = [_peak(_folded(row), lowest) for row in counts]
    typical = float(stats.norm.isf(1.0 - 0.5 ** (1.0 / bins)))
    placebo_z = float(torch.tensor([peak.z for peak in peaks[1:]]).median())
    inflation = max(1.0, placebo_z / typical)
    found = peaks[0]
    share = found.excess / total
    placebo_share = float(torch.tensor([peak.excess for peak in peaks[1:]]).median()) / total
    by_layer = {
        layer.name: _excess(_folded(layer.counts[0]), found.index) / max(layer.weights, 1) for layer in kept
    }
    return Detection(
        share - placebo_share,
        {
            "atom_share": share,
            "placebo_atom_share": placebo_share,
            "margin": (_HALF - found.index) / BINS,
            "contrast": found.z,
            "inflation": inflation,
            "weights": total,
        },
        p_value=min(1.0, bins * float(stats.norm.sf(found.z / inflation))),
        by_layer=by_layer,
        tensors=histograms(kept),
        notes=notes,
    )


def detect(subject: Subject, options: EdgeAtoms) -> Detection:
    """`find_atoms` on the subject's weights."""
    return find_atoms(subject.residuals, options)
