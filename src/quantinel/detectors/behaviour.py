"""How a network answers under other weights, and how far two sets of answers lie apart."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.func import functional_call

from quantinel.data.images import as_float
from quantinel.data.sampling import balanced_indices
from quantinel.detectors.subject import Subject
from quantinel.model.graph import FloatGraph

TEMPERATURE = 4.0
"""Softens the answers, so that classes far behind the first one count too: a backdoor moves those on clean images."""
LEAST_DIVERGENCE = 1e-9
"""Float32 sums in another order differ by about this much."""
SHOWN = 8
"""Images that evidence shows."""
_BATCH = 64


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


@torch.inference_mode()
def answers(graph: FloatGraph, images: Tensor, weights: Mapping[str, Tensor] | None = None) -> Tensor:
    """Logits (N, K) of float images, with some weights replaced.

    Args:
        graph: the network.
        images: (N, C, H, W).
        weights: by buffer; None for the network as it is.
    """
    batches = torch.split(images, _BATCH)
    return torch.cat([functional_call(graph.module, dict(weights or {}), (batch,)) for batch in batches])


def divergence(reference: Tensor, other: Tensor) -> float:
    """Mean Kullback-Leibler divergence of softened answers, in nats; at least `LEAST_DIVERGENCE`.

    Args:
        reference: logits (N, K).
        other: logits (N, K).
    """
    expected, actual = (softened(logits) for logits in (reference, other))
    found = (expected.exp() * (expected - actual)).sum(1).mean()
    return max(float(found), LEAST_DIVERGENCE)


def softened(logits: Tensor) -> Tensor:
    """Logarithms of the softened answers, (N, K)."""
    return (logits / TEMPERATURE).log_softmax(1)


def agreement(reference: Tensor, other: Tensor) -> float:
    """Share of images with the same answer."""
    return float((reference.argmax(1) == other.argmax(1)).double().mean())
