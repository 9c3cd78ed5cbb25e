"""Second moment of the residuals: 12 E[r^2] - 1 is 0 for uniform residuals, positive for weights at the edges of
their cells, negative for weights herded to the centres.

PQ backdoors made for TFLite herd the weights to the centres first, so that the whole cell is free later, and this
remains even in weights that never moved (specification of the attacks, 7.1 and 7.3, T3). At 4 bits and below the
natural value is not 0, so it is compared with placebo grids.

Null hypothesis: the deployment grid's value is one more draw from the placebo grids' (Student's t for each layer,
two-sided, Fisher over layers). Quantization-aware training on the same grid is seen as well. Not seen: residuals that
were spread evenly in a last step, and attacks without projection.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quantinel.detectors.layer_residuals import (
    BINS,
    LayerResiduals,
    assessable,
    counts_of,
    histograms,
    require_unsearched,
)
from quantinel.detectors.significance import layers_over_placebos
from quantinel.detectors.subject import Detection, Subject
from quantinel.validation import require_positive_integers


@dataclass(frozen=True)
class SecondMoment:
    """Options.

    Attributes:
        smallest_layer: layers with fewer weights are left out.
    """

    smallest_layer: int = 50

    def __post_init__(self) -> None:
        require_positive_integers(self, "smallest_layer")


def relative_moment(counts: Tensor) -> Tensor:
    """(1 + P,) 12 E[r^2] - 1 of (1 + P, 1000) weights by bin."""
    residual = (torch.arange(BINS, dtype=torch.float64) - BINS // 2) / BINS
    weighted = counts.double() @ residual.square()
    return 12.0 * weighted / counts.sum(1).clamp_min(1) - 1.0


def sampling_spread(weights: int) -> float:
    """Standard deviation of `relative_moment` over this many uniform residuals, sqrt(4 / 5n)."""
    return math.sqrt(0.8 / max(weights, 1))


def judge_moment(layers: Sequence[LayerResiduals], options: SecondMoment) -> Detection:
    """Score: size of the difference between the deployment grid's value and the placebo grids' mean, all layers.

    Raises:
        NotAssessable: no layer has enough weights, or all were already quantized.
    """
    kept, notes = assessable(layers, options.smallest_layer)
    by_layer, p_value = layers_over_placebos(
        {layer.name: (relative_moment(layer.counts), sampling_spread(layer.weights)) for layer in kept}, two_sided=True
    )
    whole = relative_moment(counts_of(kept))
    difference = float(whole[0] - whole[1:].mean())
    return Detection(
        abs(difference),
        {
            "moment": float(whole[0]),
            "placebo_moment": float(whole[1:].mean()),
            "difference": difference,
            "layers": float(len(kept)),
        },
        p_value=p_value,
        by_layer=by_layer,
        tensors=histograms(kept),
        notes=notes,
    )


def detect(subject: Subject, options: SecondMoment) -> Detection:
    """`judge_moment` on the subject's weights.

    Raises:
        NotAssessable: also where the scheme searches the scale of least error.
    """
    require_unsearched(subject.scheme)
    return judge_moment(subject.residuals, options)
