"""Layer reconstruction over the codes near each weight, as the closed-form defenses share it."""

from __future__ import annotations

import torch
from torch import Tensor

from quantinel.quantization.reconstruction import LayerProblem
from quantinel.quantization.rounding import broadcast_scale
from quantinel.quantization.scheme import QuantScheme
from quantinel.quantization.solver import LEAST_RIDGE, RoundingProblem, coordinate_descent


def grouped(problem: LayerProblem, value: Tensor) -> Tensor:
    """Shape a value of every weight (O, ...) as the solver's (G, O / G, D)."""
    assert problem.statistics is not None
    groups, size = problem.statistics.moments.diagonal().shape
    return value.expand_as(problem.weight).reshape(groups, -1, size)


def codes_beyond(room: float, scheme: QuantScheme) -> int:
    """How many codes beyond its two neighbours a weight may move where its channel uses the whole grid.

    Args:
        room: share of the grid's largest code.
        scheme: the grid.
    """
    return int(room * scheme.code_max)


def _bounds(problem: LayerProblem, room: float) -> tuple[Tensor, Tensor]:
    """Lowest and highest code of every weight, (O, ...).

    Room is a share of the codes that a channel uses; its largest weight has none.
    """
    cell, scheme, weight = problem.cell, problem.scheme, problem.weight
    if not codes_beyond(room, scheme):
        return cell.floor, cell.ceil
    size = weight.abs()
    inside = size < broadcast_scale(size.flatten(1).amax(1), weight)
    used = cell.nearest.abs().flatten(1).amax(1).clamp(max=scheme.code_max)
    further = broadcast_scale((room * used).floor(), weight) * (cell.free & inside)
    return (
        (cell.floor - further).clamp(scheme.code_min, scheme.code_max),
        (cell.ceil + further).clamp(scheme.code_min, scheme.code_max),
    )


def reconstruct(
    problem: LayerProblem,
    *,
    lean: float = 0.0,
    damping: float,
    sweeps: int,
    activation_weight: float = 1.0,
    step_cost: Tensor | None = None,
    room: float = 0.0,
) -> Tensor:
    """Codes whose outputs on the quantized prefix are nearest to those of W + ``lean`` R on the float prefix.

    Args:
        problem: the layer, with statistics.
        lean: how far the weights to reproduce are from W along the error R of nearest rounding; a method that gives it
            is a `LeaningMethod`.
        damping: ridge that ties the choice to these weights where the images excite nothing, as a share of the mean of
            diag H.
        sweeps: at most this many passes of coordinate descent.
        activation_weight: of the output error against ``step_cost``.
        step_cost: cost of a code over the next lower one, (O, ...).
        room: how far beyond its two neighbours a weight may move, as a share of the largest code of its channel:
            1/32 is 3 codes where a channel uses all of 8 bits, one at 7, and none below. Weights on the grid have no
            choice, as ever, and the largest weight of a channel stays within its neighbours.

    Returns:
        int8 codes, (O, ...).
    """
    assert problem.statistics is not None
    moments, cell = problem.statistics.moments, problem.cell
    lowest, highest = _bounds(problem, room)
    unit = activation_weight**0.5  # of W and V: the output error is quadratic in them
    target = problem.weight + lean * problem.rounding_error() if lean else problem.weight
    solver = RoundingProblem(
        target=grouped(problem, target) * unit,
        moments=moments.scaled(unit),
        scale=grouped(problem, broadcast_scale(problem.scale, problem.weight))[:, :, :1] * unit,
        lowest=grouped(problem, lowest),
        highest=grouped(problem, highest),
        step_cost=None if step_cost is None else grouped(problem, step_cost),
        ridge=damping * moments.diagonal().mean(dim=1).clamp_min(LEAST_RIDGE),
        lean=lean,
    )
    codes = coordinate_descent(solver, grouped(problem, cell.nearest), sweeps)
    return codes.reshape(problem.weight.shape).to(torch.int8)
