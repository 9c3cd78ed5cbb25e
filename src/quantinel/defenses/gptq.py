"""GPTQ on a fixed grid: round column by column, and let the columns that are still free make up for each error.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", ICLR 2023,
algorithm 1, with H = E[x' x'^T] of the quantized prefix. With U the upper Cholesky factor of (H + damping)^-1, column
j is rounded, and (w_j - q_j) / U_jj * U_j,k is subtracted from every later column k; updates are lazy, in blocks. All
output channels move at once, each with its own fixed scale.

Deviations: grids are those of the float weights (the reference finds them while it runs, per group); inputs that are
always 0 keep their nearest codes because damping couples them to nothing (the reference sets their weights to 0); a
layer wider than `statistics.WIDEST` is compensated within chunks of its columns. ``target="float"`` is an addition:
start from the weights that best reproduce the float network's outputs from quantized inputs, W C^T H^-1, which also
undoes errors of earlier layers, and in a wide layer those of earlier chunks. Codes may leave the two neighbours of a
weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from quantinel.errors import UsageError
from quantinel.quantization.moments import Moments
from quantinel.quantization.reconstruction import BiasOption, LayerProblem, Needs
from quantinel.quantization.rounding import broadcast_scale
from quantinel.quantization.scheme import QuantScheme
from quantinel.quantization.solver import LEAST_RIDGE
from quantinel.quantization.statistics import WIDEST
from quantinel.validation import require_choice, require_non_negative

_BLOCK = 128


@dataclass(frozen=True)
class GPTQ(BiasOption):
    """Sequential rounding with error compensation.

    Attributes:
        damping: share of the mean of diag H that is added to it; the reference's 0.01.
        target: "own" reproduces W x' as the reference does, "float" reproduces W x.
        order: of the columns: "given", or "activations", largest diag H first (the reference's act-order).
    """

    damping: float = 0.01
    target: Literal["own", "float"] = "own"
    order: Literal["given", "activations"] = "given"

    def __post_init__(self) -> None:
        require_non_negative(self, "damping")
        require_choice(self, "target", ("own", "float"))
        require_choice(self, "order", ("given", "activations"))

    name: ClassVar[str] = "gptq"
    needs: ClassVar[Needs] = "statistics"

    def choose(self, problem: LayerProblem) -> Tensor:
        """Codes of one layer; (O, ...) int8."""
        assert problem.statistics is not None
        moments = problem.statistics.moments
        diagonal = moments.diagonal()
        groups, size = diagonal.shape
        weight = problem.weight.reshape(groups, -1, size)
        scale = broadcast_scale(problem.scale, problem.weight).expand_as(problem.weight)
        wide_scale = scale.reshape(groups, -1, size)[:, :, :1].double()
        gradient = moments.gradient(torch.zeros_like(weight)) if self.target == "float" else None
        parts = []
        for begin in range(0, size, WIDEST):
            end = min(begin + WIDEST, size)
            gram = _damped(moments, begin, end, self.damping)
            start = weight[:, :, begin:end].double()
            key = diagonal[:, begin:end]
            order = key.argsort(dim=1, descending=True, stable=True) if self.order == "activations" else None
            try:
                if gradient is not None:
                    # V - E[(V x' - W x) x'^T] (H + damping)^-1: the best float weights, tied to W by the damping
                    excess = gradient.columns(begin, end).double().transpose(1, 2)
                    start = start - torch.linalg.solve(gram, excess).transpose(1, 2)
                codes = _in_order(start, gram, wide_scale, problem.scheme, order)
            except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
                raise UsageError(
                    f"layer {problem.layer.name}: at damping {self.damping:g} the second moments of its inputs have no "
                    "inverse; raise damping (0.01 by default) or give more calibration images"
                ) from error
            if gradient is not None and end < size:  # what this chunk leaves is for the next one to undo
                moves = codes * wide_scale - weight[:, :, begin:end]
                gradient.move(begin, end, moves.to(problem.weight.dtype))
            parts.append(codes)
        return torch.cat(parts, dim=2).reshape(problem.weight.shape).to(torch.int8)


def _damped(moments: Moments, begin: int, end: int, damping: float) -> Tensor:
    """H + damping of some columns, float64; inputs that were never seen get a diagonal of their own."""
    gram = moments.block(begin, end).double()
    ridge = damping * gram.diagonal(dim1=1, dim2=2).mean(dim=1).clamp_min(LEAST_RIDGE)
    gram.diagonal(dim1=1, dim2=2).add_(ridge[:, None].clamp_min(LEAST_RIDGE))
    return gram


def _in_order(start: Tensor, gram: Tensor, scale: Tensor, scheme: QuantScheme, order: Tensor | None) -> Tensor:
    if order is None:
        return compensate(start, gram, scale, scheme)
    columns = order[:, None, :].expand_as(start)
    gram = gram.gather(1, order[:, :, None].expand_as(gram)).gather(2, order[:, None, :].expand_as(gram))
    codes = compensate(start.gather(2, columns), gram, scale, scheme)
    return torch.empty_like(codes).scatter_(2, columns, codes)


def compensate(start: Tensor, gram: Tensor, scale: Tensor, scheme: QuantScheme) -> Tensor:
    """Round the columns of ``start`` from left to right.

    Args:
        start: weights to reproduce, (G, O, D) float64.
        gram: damped H, (G, D, D) float64.
        scale: (G, O, 1) float64.
        scheme: the grid.

    Returns:
        Codes, (G, O, D) float64.
    """
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
    upper = torch.linalg.cholesky(inverse, upper=True)
    weight, codes = start.clone(), torch.empty_like(start)
    size = weight.shape[2]
    for begin in range(0, size, _BLOCK):
        end = min(begin + _BLOCK, size)
        errors = torch.empty_like(weight[:, :, begin:end])
        for j in range(begin, end):
            column = weight[:, :, j : j + 1]
            code = torch.round(column / scale).clamp(scheme.code_min, scheme.code_max)
            error = (column - code * scale) / upper[:, j : j + 1, j : j + 1]
            weight[:, :, j + 1 : end] -= error * upper[:, j : j + 1, j + 1 : end]
            codes[:, :, j : j + 1] = code
            errors[:, :, j - begin : j - begin + 1] = error
        weight[:, :, end:] -= errors @ upper[:, begin:end, end:]
    return codes
