"""Neural Cleanse on the float network: the comparison, which cannot see what only wakes after compression.

Wang et al., "Neural Cleanse: Identifying and Mitigating Backdoor Attacks in Neural Networks", IEEE S&P 2019, section V:
for every class, the smallest mask and its pattern that turn 99 % of the images into the class; a class whose mask is an
outlier to the small side (anomaly index above 2: distance from the median over 1.4826 times the median absolute
deviation) is the target of a backdoor. The weight of the mask rises by 1.5 while the trigger succeeds, and falls by
1.5 ^ 1.5 otherwise, as in the released code.

Deviations: sizes for a CPU (steps and images are options; the authors run thousands of batches of 32); all classes are
optimised in one batch; success is a running mean over the batches; of more classes than `NeuralCleanse.classes` a
random choice is looked at.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from quantinel.detectors.behaviour import sampled
from quantinel.detectors.subject import Detection, Subject
from quantinel.errors import NotAssessable
from quantinel.inversion.search import shown, stamped
from quantinel.validation import require_positive_integers

_RATE, _BETAS = 0.1, (0.5, 0.9)
_SUCCESS, _FIRST_WEIGHT, _FACTOR = 0.99, 1e-3, 1.5
_PATIENCE = 5
_MEMORY = 0.8
_CONSISTENCY = 1.4826
_FEWEST_CLASSES, _FEWEST_STEPS = 3, 10
ANOMALY = 2.0


@dataclass(frozen=True)
class NeuralCleanse:
    """The detector's options.

    Attributes:
        images: of the user's, at most.
        classes: at most.
        steps: of Adam.
        step_images: per class and step.
    """

    images: int = 64
    classes: int = 20
    steps: int = 120
    step_images: int = 4

    def __post_init__(self) -> None:
        require_positive_integers(self, "images", "classes", "steps", "step_images")


def detect(subject: Subject, options: NeuralCleanse) -> Detection:
    """Score: the anomaly index of the class with the smallest mask.

    Raises:
        NotAssessable: fewer than two images, or than three classes.
    """
    images, graph = sampled(subject, options.images), subject.graph
    if graph.num_classes < _FEWEST_CLASSES:
        raise NotAssessable(f"an outlier among {graph.num_classes} classes means nothing; three are needed")
    generator = torch.Generator().manual_seed(subject.seed)
    classes = torch.randperm(graph.num_classes, generator=generator)[: options.classes].sort().values
    masks = torch.full((len(classes), 1, *images.shape[2:]), -1.0, requires_grad=True)
    patterns = (0.1 * torch.randn(len(classes), *images.shape[1:], generator=generator)).requires_grad_()
    optimiser = torch.optim.Adam([masks, patterns], _RATE, betas=_BETAS)
    rows = torch.arange(len(classes)).repeat_interleave(options.step_images)
    weight, success = torch.full((len(classes),), _FIRST_WEIGHT), torch.zeros(len(classes))
    smallest, notes = torch.full((len(classes),), float(masks[0].numel())), list[str]()
    for step in range(options.steps):
        if step >= _FEWEST_STEPS and not subject.budget.remaining():
            notes.append(f"{step} of {options.steps} steps in the time that was left; masks are not the smallest")
            break
        chosen = torch.randint(len(images), (len(rows),), generator=generator)
        mask, pattern = shown(masks, patterns, "mask")
        logits = graph.module(stamped(images[chosen], mask[rows], pattern[rows], "mask"))
        norms = mask.flatten(1).sum(1)
        loss = F.cross_entropy(logits, classes[rows], reduction="sum") / options.step_images + (weight * norms).sum()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        with torch.no_grad():
            now = (logits.argmax(1) == classes[rows]).float().reshape(-1, options.step_images).mean(1)
            success = _MEMORY * success + (1 - _MEMORY) * now
            succeeds = success >= _SUCCESS
            smallest = torch.where(succeeds, torch.minimum(smallest, norms), smallest)
            if step % _PATIENCE == _PATIENCE - 1:
                weight = torch.where(succeeds, weight * _FACTOR, weight / _FACTOR**1.5)
    index = _anomaly(smallest)
    target = int(smallest.argmin())
    with torch.no_grad():
        mask, pattern = shown(masks, patterns, "mask")
    return Detection(
        float(index[target]),
        {
            "smallest_mask": float(smallest[target]),
            "median_mask": float(smallest.median()),
            "smallest_class": float(classes[target]),
            "classes": float(len(classes)),
        },
        suspect_class=int(classes[target]) if index[target] > ANOMALY else None,
        by_class=dict(zip(classes.tolist(), index.tolist(), strict=True)),
        tensors={"mask": mask[target].clone(), "pattern": pattern[target].clone()},
        notes=tuple(notes),
    )


def _anomaly(norms: Tensor) -> Tensor:
    """(k,) how far every mask is below the median, in consistent median absolute deviations; 0 above it."""
    below = norms.median() - norms
    deviation = _CONSISTENCY * below.abs().median()
    return below.clamp_min(0) / deviation.clamp_min(1e-6 * float(norms.median().clamp_min(1e-6)))
