"""Re-rounding: does behaviour depend on the side to which every weight is rounded?

Null hypothesis: the signs of the rounding errors are exchangeable, so the network under nearest rounding is one more of
the control copies with the same errors and random signs (`quantinel.inversion.rounding_errors`). Behaviour is the
Kullback-Leibler divergence between softened answers of the float network and of the rounded one on clean images, in
logarithms, which are roughly normal over copies; and the rise of every class's mean softened answer, which names the
class that the backdoor leans to. The smaller of the two p-values counts, times two; that of the classes times their
number. A backdoor trained into the rounding moves answers further than chance does; training for the grid that is
honest (quantization-aware) moves them less. Errors are exaggerated, those of the copies as well: joint attacks of few
bits lean further beyond the grid point than on it.

Activations stay float: attacks that need them rounded show in activation drift. Not seen: a backdoor that is silent
on clean images to the last class.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quantinel.detectors.behaviour import agreement, divergence, sampled
from quantinel.detectors.controls import compare, draw, smallest, surprise
from quantinel.detectors.subject import ALREADY_ON_GRID, Detection, Subject
from quantinel.inversion.answers import answers, softened
from quantinel.validation import require_positive, require_positive_integers

LEANING_P = 0.01
"""Only a rise this rare is worth naming a class for."""
_LEAST_RISE = 1e-7


@dataclass(frozen=True)
class ReRounding:
    """The detector's options.

    Attributes:
        images: of the user's, at most.
        copies: controls.
        exaggeration: factor of the rounding errors.
    """

    images: int = 64
    copies: int = 29
    exaggeration: float = 2.0

    def __post_init__(self) -> None:
        require_positive_integers(self, "images", "copies")
        require_positive(self, "exaggeration")


def detect(subject: Subject, options: ReRounding) -> Detection:
    """Score: -log10 of the p-value.

    Raises:
        NotAssessable: fewer than two images.
    """
    images = sampled(subject, options.images)
    errors = subject.rounding_errors.exaggerated(options.exaggeration)
    if not errors.moved:
        return ALREADY_ON_GRID
    floating = answers(subject.graph, images)
    rounded = answers(subject.graph, images, errors.rounded())
    generator = torch.Generator().manual_seed(subject.seed)
    copies, notes = draw(
        lambda: answers(subject.graph, images, errors.randomised(generator)), options.copies, subject.budget
    )
    apart = [math.log(divergence(floating, copy)) for copy in copies]
    drift = compare(math.log(divergence(floating, rounded)), apart)
    same = [agreement(floating, copy) for copy in copies]
    rises = _rises(floating, copies)
    leaning = [
        compare(rise, column, _LEAST_RISE)
        for rise, column in zip(_rises(floating, [rounded])[0].tolist(), rises.t().tolist(), strict=True)
    ]
    towards = smallest([rise.p_value for rise in leaning])
    p_value = smallest([drift.p_value, towards])
    suspect = max(range(len(leaning)), key=lambda index: leaning[index].z)
    return Detection(
        surprise(p_value),
        {
            "divergence": divergence(floating, rounded),
            "divergence_of_copies": math.exp(sum(apart) / len(apart)),
            "divergence_z": drift.z,
            "class_z": leaning[suspect].z,
            "agreement": agreement(floating, rounded),
            "agreement_of_copies": sum(same) / len(same),
            "rank_p_value": drift.rank_p_value,
            "copies": float(len(copies)),
            "moved_share": errors.moved,
        },
        p_value=p_value,
        suspect_class=suspect if towards <= LEANING_P else None,
        by_class={index: rise.z for index, rise in enumerate(leaning)},
        notes=tuple(notes),
    )


def _rises(floating: Tensor, others: Sequence[Tensor]) -> Tensor:
    """(M, K) rise of every class's mean softened answer from the float network's to each of the M others'."""
    start = softened(floating).exp().mean(0)
    return torch.stack([softened(other).exp().mean(0) - start for other in others])
