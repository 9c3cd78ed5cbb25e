"""Trigger probing: do triggers of known kinds move answers further than chance in the rounding errors' signs explains?

The images are shown with every trigger of a bank (`quantinel.inversion.probes`) to the float network, to the rounded
network, and to control copies whose rounding errors have random signs (`quantinel.inversion.rounding_errors`). Rounding
errors are exaggerated: a backdoor that half obeys a foreign trigger obeys more of it further along its own direction,
and the null hypothesis, that the signs are exchangeable, holds at any length.

For every probe and class: the rise of the mean softened answer over the float network's, in standard deviations of
what the other networks show. The largest such figure stands for a network, found in the same way for all of them; the
score is -log10 of the p-value of the rounded network's among the copies' (logarithms, Student's t).

Not seen: a trigger unlike every probe. Activations stay float.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from quantinel.detectors.behaviour import first_images, sampled
from quantinel.detectors.controls import compare, draw, surprise
from quantinel.detectors.subject import ALREADY_ON_GRID, Detection, Subject
from quantinel.inversion.probes import probe_bank
from quantinel.inversion.probing import Probing, against_others
from quantinel.validation import require_positive, require_positive_integers

_LEAST_SPREAD = 0.1
_FEWEST_COPIES = 7
_NAMED_P = 0.01


@dataclass(frozen=True)
class TriggerProbing:
    """The detector's options.

    Attributes:
        images: of the user's, at most; each is shown with every probe.
        copies: controls.
        exaggeration: factor of the rounding errors.
    """

    images: int = 8
    copies: int = 29
    exaggeration: float = 1.5

    def __post_init__(self) -> None:
        require_positive_integers(self, "images", "copies")
        require_positive(self, "exaggeration")


def detect(subject: Subject, options: TriggerProbing) -> Detection:
    """Score: -log10 of the p-value.

    Raises:
        NotAssessable: fewer than two images, or they are so small that no probe fits.
    """
    images = sampled(subject, options.images)
    errors = subject.rounding_errors.exaggerated(options.exaggeration)
    if not errors.moved:
        return ALREADY_ON_GRID
    probes = probe_bank(subject.required_images().shape)
    probing = Probing(subject.graph, probes, images)
    generator = torch.Generator().manual_seed(subject.seed)
    rounded = probing.rises(errors.rounded())
    copies, notes = draw(
        lambda: probing.rises(errors.randomised(generator)), options.copies, subject.budget, fewest=_FEWEST_COPIES
    )
    rises = torch.stack([rounded, *copies])
    unusual = against_others(rises)
    largest = unusual.flatten(1).amax(1).clamp(min=1.0).log().tolist()
    found = compare(largest[0], largest[1:], _LEAST_SPREAD)
    index, suspect = divmod(int(unusual[0].argmax()), unusual.shape[-1])
    return Detection(
        surprise(found.p_value),
        {
            "largest_z": math.exp(largest[0]),
            "largest_z_of_copies": math.exp(sum(largest[1:]) / len(copies)),
            "rise": float(rises[0, index, suspect]),
            "rank_p_value": found.rank_p_value,
            "probed_class": float(suspect),
            "probes": float(len(probes)),
            "copies": float(len(copies)),
            "moved_share": errors.moved,
        },
        p_value=found.p_value,
        suspect_class=suspect if found.p_value <= _NAMED_P else None,
        by_class=dict(enumerate(unusual[0].amax(0).tolist())),
        tensors={"triggered": probes[index].stamp(first_images(subject))},
        notes=tuple(notes),
        remarks=(f"closest probe: {probes[index].name}",) if found.p_value <= _NAMED_P else (),
    )
