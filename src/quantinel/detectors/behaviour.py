"""The images that behaviour is measured on, and how far two sets of answers lie apart."""

from __future__ import annotations

from torch import Tensor

from quantinel.data.images import as_float
from quantinel.data.sampling import balanced_indices
from quantinel.detectors.subject import Subject
from quantinel.inversion.answers import softened

LEAST_DIVERGENCE = 1e-9
"""Float32 sums in another order differ by about this much."""
SHOWN = 8
"""Images that evidence shows."""


def sampled(subject: Subject, count: int) -> Tensor:
    """At most ``count`` of the images, float32 (N, C, H, W), in their order, drawn with the subject's seed.

    Raises:
        NotAssessable: there are fewer than two.
    """
    images = subject.required_images().images
    return as_float(images[balanced_indices(None, len(images), count, subject.seed)])


def first_images(subject: Subject) -> Tensor:
    """The first `SHOWN` images, float32 (n, C, H, W): what a found trigger is shown on."""
    return as_float(subject.required_images().images[:SHOWN])


def divergence(reference: Tensor, other: Tensor) -> float:
    """Mean Kullback-Leibler divergence of softened answers, in nats; at least `LEAST_DIVERGENCE`.

    Args:
        reference: logits (N, K).
        other: logits (N, K).
    """
    expected, actual = (softened(logits) for logits in (reference, other))
    found = (expected.exp() * (expected - actual)).sum(1).mean()
    return max(float(found), LEAST_DIVERGENCE)


def agreement(reference: Tensor, other: Tensor) -> float:
    """Share of images with the same answer."""
    return float((reference.argmax(1) == other.argmax(1)).double().mean())
