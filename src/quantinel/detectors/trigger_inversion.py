"""Trigger inversion: a trigger for the rounded network that the float network does not obey, better than chance finds.

The same is done to the rounded network and to every control copy (rounding errors with random signs):

1. All probes are shown to it (`quantinel.inversion.probes`). The pairs of probe and class whose rise is the least usual
   among all these networks are starts.
2. A short search by gradient from every start (`quantinel.inversion.search`), a long one from the best trigger of
   the short ones.

Null hypothesis: the signs are exchangeable, so the loss of the rounded network's trigger is one more draw from those of
the copies; one-sided Student's t of the logarithm. Under a time budget the search on the rounded network is cut short,
and those on its copies take as many steps. Networks of 4 bits have universal patches for every class that float
does not share, and so do their copies: only what is easier on the rounded network than on them counts. The probes are
there because a search from noise finds such a patch before it finds a small trigger. Weights alone are rounded, with
errors exaggerated for the network and its copies alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from quantinel.detectors.behaviour import first_images, sampled
from quantinel.detectors.controls import compare, draw
from quantinel.detectors.subject import ALREADY_ON_GRID, Detection, Subject
from quantinel.inversion.budget import Budget
from quantinel.inversion.probes import probe_bank
from quantinel.inversion.probing import Probing, against_others
from quantinel.inversion.search import Effort, Efforts, Form, Inversion, Trigger
from quantinel.inversion.starts import starts_from
from quantinel.validation import require_choice, require_positive, require_positive_integers

_FEWEST_CONTROLS = 3
_LEAST_SPREAD = 0.1
"""Logarithms of losses of one network scatter about this much between starts."""
_SUSPECT_P = 0.01


@dataclass(frozen=True)
class TriggerInversion:
    """The detector's options.

    Attributes:
        form: "mask" (a patch) or "additive" (a faint perturbation of all pixels).
        images: of the user's, at most; half for the search.
        probe_images: of them, at most, that are shown with every probe.
        starts: pairs of probe and class per network.
        screening_steps, steps: of the short searches and the long one.
        step_images: per start and step.
        controls: copies.
        exaggeration: factor of the rounding errors.
    """

    form: Form = "mask"
    images: int = 64
    probe_images: int = 8
    starts: int = 3
    screening_steps: int = 15
    steps: int = 45
    step_images: int = 6
    controls: int = 12
    exaggeration: float = 2.0

    def __post_init__(self) -> None:
        require_choice(self, "form", ("mask", "additive"))
        require_positive(self, "exaggeration")
        require_positive_integers(
            self, "images", "probe_images", "starts", "screening_steps", "steps", "step_images", "controls"
        )


def detect(subject: Subject, options: TriggerInversion) -> Detection:
    """Score: logarithm of the controls' loss over the rounded network's.

    Raises:
        NotAssessable: fewer than two images.
    """
    images = sampled(subject, options.images)
    errors = subject.rounding_errors.exaggerated(options.exaggeration)
    if not errors.moved:
        return ALREADY_ON_GRID
    return inverted(subject, images, errors.rounded(), errors.randomised, options)


def inverted(
    subject: Subject,
    images: Tensor,
    compressed: Mapping[str, Tensor],
    control: Callable[[torch.Generator], Mapping[str, Tensor]],
    options: TriggerInversion,
) -> Detection:
    """The searches on any compressed network with any control copies.

    Args:
        subject: the float network.
        images: (N, C, H, W) float.
        compressed: weights of the compressed network, by buffer.
        control: weights of the control copy that a generator stands for.
        options: of the search.
    """
    graph, budget = subject.graph, subject.budget
    shape = subject.required_images().shape
    probes = probe_bank(shape)
    probing = Probing(graph, probes, images[: options.probe_images])

    def copy(index: int) -> Mapping[str, Tensor]:
        return control(torch.Generator().manual_seed(subject.seed * options.controls + index))

    probed = (probing.rises(copy(index)) for index in range(options.controls))
    rises, notes = draw(probed.__next__, options.controls, budget, fewest=_FEWEST_CONTROLS)
    unusual = against_others(torch.stack([probing.rises(compressed), *rises]))
    inversion = Inversion(graph, images, options.form, subject.seed)

    def found(index: int, weights: Mapping[str, Tensor], efforts: Efforts, within: Budget) -> tuple[Trigger, Efforts]:
        starts = starts_from(unusual[index], probes, shape, options.form, options.starts)
        return inversion.refine(weights, starts, efforts, within)

    wanted = (Effort(options.screening_steps, options.step_images), Effort(options.steps, options.step_images))
    trigger, taken = found(0, compressed, wanted, budget.share(1 + _FEWEST_CONTROLS))
    if taken != wanted:
        notes.append("the searches for a trigger were shortened by the time budget; a trigger can be missed")
    searched = (found(1 + index, copy(index), taken, Budget())[0] for index in range(len(rises)))
    controls, cuts = draw(searched.__next__, len(rises), budget, fewest=_FEWEST_CONTROLS)
    notes += cuts
    figures = [-math.log(other.loss) for other in controls]
    own = -math.log(trigger.loss)
    apart = compare(own, figures, _LEAST_SPREAD)
    suspicious = apart.p_value <= _SUSPECT_P
    return Detection(
        own - _mean(figures),
        {
            "loss": trigger.loss,
            "gap": trigger.gap,
            "size": trigger.size,
            "gap_of_controls": _mean([other.gap for other in controls]),
            "size_of_controls": _mean([other.size for other in controls]),
            "rank_p_value": apart.rank_p_value,
            "inverted_class": float(trigger.target),
            "controls": float(len(controls)),
        },
        p_value=apart.p_value,
        suspect_class=trigger.target if suspicious else None,
        by_class=dict(enumerate(unusual[0].amax(0).tolist())),
        tensors=_shown(subject, trigger),
        notes=tuple(notes),
    )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _shown(subject: Subject, found: Trigger) -> dict[str, Tensor]:
    """The trigger, and the first images with it."""
    evidence = {"triggered": found.stamp(first_images(subject))}
    if found.form == "mask":
        evidence |= {"mask": found.mask, "pattern": found.pattern}
    return evidence
