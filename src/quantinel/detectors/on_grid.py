"""Weights that are exactly points of the deployment grid. Information, not a sign of an attack by itself.

All weights on the grid: the model was quantized and dequantized before, and this quantization changes no weight, so
nothing can wake from it. Hardly any: an ordinary float model. A part of them, the rest between the points, is what
one-sided boxes leave (relatives of the PQ backdoor for k-quants clamp weights to the interval between a weight and its
dequantized value; specification of the attacks, 7.3, T4), and also what quantization of some layers only leaves.

Weights that round to 0 are not counted, and weights stored in bfloat16 or float16 are on the grid when a point lies
within the interval that the cast rounded to them. Null hypothesis: as many as lie there by chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scipy import special

from quantinel.detectors.layer_residuals import LayerResiduals
from quantinel.detectors.subject import Detection, Subject
from quantinel.errors import NotAssessable


@dataclass(frozen=True)
class OnGrid:
    """The detector's options: there are none."""


def count_on_grid(layers: Sequence[LayerResiduals], options: OnGrid) -> Detection:
    """Score: share of the weights on the grid above chance, over the room above chance; 1 where all are.

    Raises:
        NotAssessable: no weight rounds to another code than 0, or every point of the cast's numbers is near the grid.
    """
    del options
    coded = sum(layer.coded for layer in layers)
    chance = sum(layer.on_grid_chance for layer in layers)
    if coded - chance < 1:
        raise NotAssessable("no weights could be off the grid (all are zero, or cast to too few digits); give float32")
    found = sum(layer.on_grid for layer in layers)
    quantized = [layer for layer in layers if layer.levels is not None]
    return Detection(
        (found - chance) / (coded - chance),
        {
            "on_grid_share": found / coded,
            "chance_share": chance / coded,
            "layers_on_grid": float(sum(layer.on_grid == layer.coded > 0 for layer in layers)),
            "layers_quantized_before": float(len(quantized)),
            "weights": float(coded),
        },
        p_value=float(special.bdtrc(found - 1, coded, min(chance / coded, 1.0))),
        by_layer={layer.name: layer.on_grid / layer.coded for layer in layers if layer.coded},
    )


def detect(subject: Subject, options: OnGrid) -> Detection:
    """`count_on_grid` on the subject's weights."""
    return count_on_grid(subject.residuals, options)
