"""Units in which squares of a layer's weights and inputs fit into float32.

Layers can be scaled against each other without a change of the network: a convolution's outputs times 1e25, through a
ReLU, the next one's weights by as much. Second moments of such layers overflow, or vanish, where the layers themselves
do not, and what minimises them would leave the codes of nearest rounding. So the closed forms see weights and inputs in
powers of two of their own size. Ordinary ones stay as they are; codes do not depend on units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_ORDINARY = 20
"""Largest magnitudes between 2^-20 and 2^20 need no unit."""


@dataclass(frozen=True)
class Units:
    """Factors, powers of two.

    Attributes:
        weight: of weights and scales.
        inputs: of inputs.
    """

    weight: float
    inputs: float

    @classmethod
    def of(cls, weight: Tensor, *inputs: Tensor) -> Units:
        """Of one layer: its weight, and what it receives."""
        return cls(unit(weight), unit(*inputs))


def unit(*values: Tensor) -> float:
    """The power of two that brings the largest magnitude of values near 1; 1 for ordinary ones and for zeros."""
    largest = max(float(max(-low, high)) for low, high in (torch.aminmax(value) for value in values))
    exponent = math.frexp(largest)[1] if math.isfinite(largest) else 0
    return 1.0 if abs(exponent) <= _ORDINARY else math.ldexp(1.0, -exponent)


def times(value: Tensor, factor: float) -> Tensor:
    """The value itself where there is nothing to do."""
    return value if factor == 1 else value * factor
