"""Trigger inversion: a trigger for the rounded network that the float network does not obey, better than chance finds.

1. A short search for every class on the rounded network (of many classes, those that it leans to most on clean images).
2. For the class of the best trigger, and for the class that clean images lean to most, a longer search anew, with other
   starts and batches; and the same search, matched in starts, batches and effort, on control copies whose rounding
   errors have random signs.

Null hypothesis: the signs are exchangeable, so the loss of the second search is one more draw from the controls';
one-sided Student's t of the logarithm, the smaller p-value of the classes times their number. Networks of 4 bits have
universal patches for every class that float does not share, and so do their copies: only what is easier on the rounded
network than on them counts. Weights alone are rounded, with errors exaggerated for the network and its copies alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quantinel.detectors.behaviour import answers, first_images, sampled, softened
from quantinel.detectors.controls import Comparison, compare, draw, smallest
from quantinel.detectors.inversion import Effort, Form, Inversion, Trigger
from quantinel.detectors.subject import ALREADY_ON_GRID, Detection, Subject
from quantinel.validation import require_choice, require_positive, require_positive_integers

_FEWEST_CONTROLS = 2
_LEAST_SPREAD = 0.1
"""Logarithms of losses of one network scatter about this much between starts."""
_SUSPECT_P = 0.05


@dataclass(frozen=True)
class TriggerInversion:
    """The detector's options.

    Attributes:
        form: "mask" (a patch) or "additive" (a faint perturbation of all pixels).
        images: of the user's, at most; half for the search.
        screened: classes of the first search, at most.
        screening_steps, screening_images: of the first search, images per class and step.
        steps, step_images: of the second.
        controls: copies.
        exaggeration: factor of the rounding errors.
    """

    form: Form = "mask"
    images: int = 64
    screened: int = 10
    screening_steps: int = 30
    screening_images: int = 3
    steps: int = 60
    step_images: int = 4
    controls: int = 4
    exaggeration: float = 2.0

    def __post_init__(self) -> None:
        require_choice(self, "form", ("mask", "additive"))
        require_positive(self, "exaggeration")
        require_positive_integers(
            self, "images", "screened", "screening_steps", "screening_images", "steps", "step_images", "controls"
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
    generator = torch.Generator().manual_seed(subject.seed)
    return inverted(subject, images, errors.rounded(), lambda: errors.randomised(generator), options)


def inverted(
    subject: Subject,
    images: Tensor,
    compressed: Mapping[str, Tensor],
    control: Callable[[], Mapping[str, Tensor]],
    options: TriggerInversion,
) -> Detection:
    """Both searches on any compressed network with any control copies.

    Args:
        subject: the float network.
        images: (N, C, H, W) float.
        compressed: weights of the compressed network, by buffer.
        control: weights of one more control copy.
        options: of the search.
    """
    graph, budget = subject.graph, subject.budget
    rise = (softened(answers(graph, images, compressed)).exp() - softened(answers(graph, images)).exp()).mean(0)
    classes = sorted(rise.topk(min(options.screened, len(rise))).indices.tolist())
    screening = Inversion(
        graph, images, Effort(options.screening_steps, options.screening_images, options.form), subject.seed, budget
    )
    screened = screening.search(compressed, classes)
    suspects = sorted({min(screened, key=lambda trigger: trigger.loss).target, int(rise.argmax())})
    refinement = Inversion(
        graph, images, Effort(options.steps, options.step_images, options.form), subject.seed + 1, budget
    )
    found = refinement.search(compressed, suspects)
    controls, notes = draw(
        lambda: refinement.search(control(), suspects), options.controls, budget, fewest=_FEWEST_CONTROLS
    )
    if screening.cut or refinement.cut:
        notes.append("the searches for a trigger were stopped by the time budget; a trigger can be missed")
    judged = [_judged(trigger, [other[index] for other in controls]) for index, trigger in enumerate(found)]
    worst = min(judged, key=lambda candidate: candidate.apart.p_value)
    p_value = smallest([candidate.apart.p_value for candidate in judged])
    return Detection(
        worst.ratio,
        {
            "loss": worst.trigger.loss,
            "gap": worst.trigger.gap,
            "size": worst.trigger.size,
            "gap_of_controls": _mean([other.gap for other in worst.controls]),
            "size_of_controls": _mean([other.size for other in worst.controls]),
            "inverted_class": float(worst.trigger.target),
            "classes": float(len(classes)),
            "controls": float(len(controls)),
        },
        p_value=p_value,
        suspect_class=worst.trigger.target if p_value <= _SUSPECT_P else None,
        by_class={trigger.target: -math.log(trigger.loss) for trigger in screened},
        tensors=_shown(subject, worst.trigger),
        notes=tuple(notes),
    )


@dataclass(frozen=True)
class _Judged:
    """A trigger against those that the same search found on the control copies.

    Attributes:
        trigger: on the compressed network.
        controls: on its copies.
        ratio: mean logarithm of the controls' losses, less that of the trigger's.
        apart: the trigger's -log loss among the controls'.
    """

    trigger: Trigger
    controls: Sequence[Trigger]
    ratio: float
    apart: Comparison


def _judged(trigger: Trigger, controls: Sequence[Trigger]) -> _Judged:
    figures = [-math.log(other.loss) for other in controls]
    own = -math.log(trigger.loss)
    return _Judged(trigger, controls, own - _mean(figures), compare(own, figures, _LEAST_SPREAD))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _shown(subject: Subject, found: Trigger) -> dict[str, Tensor]:
    """The trigger, and the first images with it."""
    evidence = {"triggered": found.stamp(first_images(subject))}
    if found.form == "mask":
        evidence |= {"mask": found.mask, "pattern": found.pattern}
    return evidence
