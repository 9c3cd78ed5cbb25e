"""How a network answers under other weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.func import functional_call

from quantinel.model.graph import FloatGraph

TEMPERATURE = 4.0
"""Softens the answers, so that classes far behind the first one count too: a backdoor moves those on clean images."""
_BATCH = 64


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


def softened(logits: Tensor) -> Tensor:
    """Logarithms of the softened answers, (N, K)."""
    return (logits / TEMPERATURE).log_softmax(1)
