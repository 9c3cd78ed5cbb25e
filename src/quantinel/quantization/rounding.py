"""From weights to integers: fractions, floor and ceiling, nearest rounding.

Notation (specification of the defenses, section 0): ``f = w/s - floor(w/s)`` is the fraction, a code is
``floor(w/s) + h`` with ``h`` in {0, 1}; nearest rounding takes ``h = 1`` where ``f > 0.5``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quantinel.quantization.scheme import QuantScheme


def broadcast_scale(scale: Tensor, weight: Tensor) -> Tensor:
    """Shape ``scale`` (O,) or (1,) so that it divides ``weight`` (O, ...)."""
    return scale.reshape(-1, *([1] * (weight.ndim - 1)))


def nearest_codes(weight: Tensor, scale: Tensor, scheme: QuantScheme) -> Tensor:
    """Round half to even, then clip: what deployed quantizers do.

    Args:
        weight: (O, ...) float.
        scale: (O,) or (1,).
        scheme: the grid.

    Returns:
        int8 codes of the weight's shape.
    """
    steps = weight.detach().float() / broadcast_scale(scale, weight)
    return torch.round(steps).clamp(scheme.code_min, scheme.code_max).to(torch.int8)


def dequantize(codes: Tensor, scale: Tensor) -> Tensor:
    """``codes * scale``, float32."""
    return codes.float() * broadcast_scale(scale, codes)


@dataclass(frozen=True)
class RoundingCell:
    """The two codes between which a rounding in the strict sense may choose, per weight.

    Attributes:
        floor: (O, ...) float, lower code after clipping.
        ceil: (O, ...) float, upper code after clipping (equal to ``floor`` where there is no choice).
        fraction: (O, ...) float in [0, 1), position between the unclipped neighbours.
        error: (O, ...) float >= 0, truncation error of nearest rounding in weight units,
            clipping error included (the defenses' epsilon).
        nearest_is_ceil: (O, ...) bool, direction of nearest rounding (half to even).
        free: (O, ...) bool, True where floor and ceiling differ. A weight on the grid has no choice, so the
            largest weight of a channel stays at +-code_max and re-quantization finds the same scale.
    """

    floor: Tensor
    ceil: Tensor
    fraction: Tensor
    error: Tensor
    nearest_is_ceil: Tensor
    free: Tensor

    @property
    def nearest(self) -> Tensor:
        """(O, ...) float, the code of nearest rounding."""
        return torch.where(self.nearest_is_ceil, self.ceil, self.floor)


ON_GRID = 1e-4
"""A weight within this many steps of the grid counts as on it (float32 division leaves about 1e-5)."""


def rounding_cell(weight: Tensor, scale: Tensor, scheme: QuantScheme) -> RoundingCell:
    """Floor, ceiling and truncation error of every weight.

    Args:
        weight: (O, ...) float.
        scale: (O,) or (1,).
        scheme: the grid.
    """
    wide = broadcast_scale(scale, weight)
    steps = weight.detach().float() / wide
    snapped = torch.round(steps)
    steps = torch.where((steps - snapped).abs() < ON_GRID, snapped, steps)
    low = torch.floor(steps)
    fraction = steps - low
    on_grid = fraction == 0
    floor = low.clamp(scheme.code_min, scheme.code_max)
    ceil = torch.where(on_grid, low, low + 1).clamp(scheme.code_min, scheme.code_max)
    nearest = torch.round(steps).clamp(scheme.code_min, scheme.code_max)
    return RoundingCell(
        floor=floor,
        ceil=ceil,
        fraction=fraction,
        error=((nearest - steps) * wide).abs(),
        nearest_is_ceil=nearest > floor,
        free=ceil > floor,
    )
