"""What a stored weight can be: numbers of few digits, and numbers that a quantizer already rounded.

Both leave grids of their own, which a test of rounding residuals would take for the mark of an attack (specification
of the attacks, 7.3, false positives). Weights cast to bfloat16 or float16 are dithered over the interval that the cast
rounded to one number, so that only structure coarser than the cast remains. Rows whose weights all are small multiples
of one step were quantized before; what happened between the points of another grid is gone from them.
"""

from __future__ import annotations

import torch
from torch import Tensor

FLOAT32 = 24
"""Significand bits of float32, the hidden one included."""
_NARROW = (8, 11)
"""Those of bfloat16 and float16, fewest first."""
_SLACK = 2.0**-21
"""Relative error that folding BatchNorm and dividing its factor out again may leave."""
_MAX_LEVELS = 255
_LATTICE_ERROR = 2e-3
_CHANCE = -20.0
"""Log of the probability that unrelated values fit one number of levels: far below 1 / 255."""
_MIN_VALUES = 8
_ROW = 512
"""Weights of a row that are enough to tell."""
_SAMPLE = 1 << 12
_MOST = 0.95
"""Share of weights, or rows, that has to agree."""


def significand_bits(weights: Tensor) -> int:
    """8 for weights that were cast to bfloat16, 11 for float16, 24 otherwise.

    Args:
        weights: finite float32 of any shape, in the units in which they were stored (nothing folded into them).
    """
    values = weights.flatten()[:_SAMPLE].double()
    values = values[values != 0]
    if len(values) < _MIN_VALUES:
        return FLOAT32
    for bits in _NARROW:
        size = unit_in_last_place(values, bits)
        error = (values / size - torch.round(values / size)).abs() * size
        if float((error <= _SLACK * values.abs()).float().mean()) >= _MOST:
            return bits
    return FLOAT32


def unit_in_last_place(values: Tensor, bits: int) -> Tensor:
    """Distance between neighbouring numbers of ``bits`` significand bits at each value, in its shape."""
    exponent = torch.frexp(values).exponent
    return torch.ldexp(torch.ones_like(values), exponent - bits)


def dithered(weights: Tensor, bits: int, generator: torch.Generator) -> Tensor:
    """Weights drawn evenly from the interval that the cast to ``bits`` rounded to each; zeros stay zero."""
    noise = torch.rand(weights.shape, generator=generator) - 0.5
    return torch.where(weights == 0, weights, weights + noise * unit_in_last_place(weights, bits))


def lattice_levels(rows: Tensor, bits: int = FLOAT32) -> int | None:
    """Levels of weights that were quantized and dequantized: every row holds small multiples of a step of its own.

    Args:
        rows: (R, D) float32, finite; a few rows of a layer are enough.
        bits: `significand_bits` of them.

    Returns:
        Median of max|w| / step over the rows (127 for int8), or None where fewer than 95 % of the rows that can be
        judged are like that.
    """
    found = []
    for row in rows:
        part = row[:_ROW]
        values, repeats = torch.unique(part[part != 0].abs().double(), return_counts=True)
        if int(repeats.sum()) < _MIN_VALUES:
            continue
        levels = _levels(values, bits) if len(values) <= _MAX_LEVELS else 0
        if levels is None and 4 * len(values) <= int(repeats.sum()):  # ternary weights and the like
            levels = len(values)
        if levels is not None:
            found.append(levels)
    lattices = [levels for levels in found if levels]
    if not found or len(lattices) < _MOST * len(found):
        return None
    return int(torch.tensor(lattices).median())


def _levels(values: Tensor, bits: int) -> int | None:
    """Fewest levels, up to 255, whose multiples all values are.

    Args:
        values: (D,) different, positive, sorted.
        bits: digits that the values and their maximum were rounded to.

    Returns:
        0 where no number of levels fits, None where the values are too few to tell.
    """
    levels = torch.arange(1, _MAX_LEVELS + 1, dtype=torch.float64).reshape(-1, 1)
    steps = values[:-1] / values[-1] * levels
    tolerance = _LATTICE_ERROR + (0.0 if bits == FLOAT32 else 2.0 ** (1 - bits)) * steps
    telling = tolerance < 0.25
    fits = (((steps - torch.round(steps)).abs() <= tolerance) | ~telling).all(1)
    by_chance = torch.where(telling, (2 * tolerance).log(), 0.0).sum(1)
    judged = by_chance < _CHANCE
    matching = (fits & judged).nonzero()
    if len(matching):
        return int(matching[0]) + 1
    return None if bool((fits & ~judged).any()) else 0
