"""Goodness of fit: is the distribution of the residuals another one on the deployment grid than on placebo grids?

Kuiper's statistic V (Proc. KNAW 1960) of every layer, the sum of the largest distances above and below between two
distribution functions; it suits residuals, which live on a circle. The reference is the mean of the other placebo
grids: at 8 bits it is uniform, at 4 bits and below it carries the cusp of the weights' density (specification of the
attacks, 7.3, T2).

Null hypothesis: log V of the deployment grid is one more draw from the placebo grids' (Student's t for each layer,
Fisher over layers). Anything that acts on the grid is seen, quantization-aware training on the same grid included; a
network trained that way is no attack, and this test alone cannot tell. Not seen: residuals that were spread evenly in
a last step, and attacks without projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quantinel.detectors.layer_residuals import LayerResiduals, assessable, counts_of, histograms, require_unsearched
from quantinel.detectors.significance import layers_over_placebos
from quantinel.detectors.subject import Detection, Subject
from quantinel.validation import require_positive_integers

_SPREAD = 0.2
"""Standard deviation of log V for samples of one distribution; it hardly depends on their size."""


@dataclass(frozen=True)
class ResidualFit:
    """Options.

    Attributes:
        smallest_layer: layers with fewer weights are left out.
    """

    smallest_layer: int = 50

    def __post_init__(self) -> None:
        require_positive_integers(self, "smallest_layer")


def kuiper(counts: Tensor) -> Tensor:
    """(1 + P,) V times the root of the sample size, each grid against the mean of the placebo grids without itself.

    Args:
        counts: (1 + P, BINS) weights by bin, the deployment grid first.
    """
    size = counts.sum(1, keepdim=True).double().clamp_min(1)
    distribution = counts.double().cumsum(1) / size
    placebos = len(counts) - 1
    total = distribution[1:].sum(0)
    reference = torch.cat([(total / placebos)[None], (total - distribution[1:]) / (placebos - 1)])
    distance = distribution - reference
    return (distance.amax(1) - distance.amin(1)) * size.squeeze(1).sqrt()


def judge_fit(layers: Sequence[LayerResiduals], options: ResidualFit) -> Detection:
    """Score: log of V on the deployment grid over its mean on the placebo grids, all layers together.

    Raises:
        NotAssessable: no layer has enough weights, or all were already quantized.
    """
    kept, notes = assessable(layers, options.smallest_layer)
    by_layer, p_value = layers_over_placebos(
        {layer.name: (kuiper(layer.counts).clamp_min(1e-9).log(), _SPREAD) for layer in kept}
    )
    whole = kuiper(counts_of(kept))
    return Detection(
        float((whole[0].clamp_min(1e-9) / whole[1:].mean().clamp_min(1e-9)).log()),
        {
            "kuiper": float(whole[0]),
            "placebo_kuiper": float(whole[1:].mean()),
            "largest_placebo_kuiper": float(whole[1:].max()),
            "layers": float(len(kept)),
        },
        p_value=p_value,
        by_layer=by_layer,
        tensors=histograms(kept),
        notes=notes,
    )


def detect(subject: Subject, options: ResidualFit) -> Detection:
    """`judge_fit` on the subject's weights.

    Raises:
        NotAssessable: also where the scheme searches the scale of least error.
    """
    require_unsearched(subject.scheme)
    return judge_fit(subject.residuals, options)
