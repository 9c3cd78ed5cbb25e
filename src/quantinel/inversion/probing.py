"""How far networks that differ in their rounding errors follow the probes, one against the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from quantinel.inversion.answers import answers, softened
from quantinel.inversion.probes import Probe
from quantinel.model.graph import FloatGraph

_LEAST_RISE = 0.003
"""A smaller standard deviation between copies is not believed: one class of ten has a mean softened answer of 0.1."""


class Probing:
    """Images with every probe, and what the float network answers to them.

    Args:
        graph: the float network.
        probes: to try.
        images: (N, C, H, W) float; each is shown with every probe.
    """

    def __init__(self, graph: FloatGraph, probes: Sequence[Probe], images: Tensor) -> None:
        self._graph, self._probes = graph, len(probes)
        self._triggered = torch.cat([probe.stamp(images) for probe in probes])
        self._float = self._answers(None)

    def rises(self, weights: Mapping[str, Tensor]) -> Tensor:
        """(P, K) how much more of its mean softened answer a network gives to every class under every probe.

        Args:
            weights: of the network where they differ from the float network's, by buffer.
        """
        return self._answers(weights) - self._float

    def _answers(self, weights: Mapping[str, Tensor] | None) -> Tensor:
        likely = softened(answers(self._graph, self._triggered, weights)).exp()
        return likely.reshape(self._probes, -1, likely.shape[-1]).mean(1)


def against_others(rises: Tensor) -> Tensor:
    """(1 + M, P, K) every network's rises in standard deviations of those of all other networks."""
    others = len(rises) - 1
    total, squares = rises.sum(0), rises.square().sum(0)
    mean = (total - rises) / others
    variance = ((squares - rises.square()) - others * mean.square()) / max(others - 1, 1)
    return (rises - mean) / variance.clamp(min=0.0).sqrt().clamp(min=_LEAST_RISE)
