"""Layer problems made by hand, and a method made up, for tests of single methods."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from quantinel.defenses import Invariant
from quantinel.model.batch_norm import FoldedBatchNorm
from quantinel.model.graph import Layer
from quantinel.quantization.layer_problem import Chain, LayerProblem
from quantinel.quantization.moments import DenseMoments
from quantinel.quantization.rounding import rounding_cell
from quantinel.quantization.scheme import QuantScheme
from quantinel.quantization.statistics import InputStatistics


def problem(
    weight: Tensor, step: float = 0.1, bits: int = 8, chain: Chain | None = None,
    statistics: InputStatistics | None = None, batch_norm: FoldedBatchNorm | None = None, index: int = 0, seed: int = 0,
) -> LayerProblem:  # fmt: skip
    """A linear layer on a grid of this step."""
    scheme = QuantScheme(weight_bits=bits)
    scale = torch.full((weight.shape[0],), step)
    layer = Layer("made", "made", "linear", "w", None, 1)
    cell = rounding_cell(weight, scale, scheme)
    return LayerProblem(layer, weight, scale, cell, scheme, index, statistics, chain, batch_norm, seed)


def linear_chain(
    inputs: Tensor, weight: Tensor, quantize: Callable[[Tensor], Tensor] | None = None, drift: float = 0.0
) -> Chain:
    """y = x W^T; the float network's inputs are ``drift`` larger."""
    targets = (1 + drift) * inputs @ weight.T
    more = {} if quantize is None else {"quantize": quantize}
    return Chain(inputs, (1 + drift) * inputs, targets, lambda x, w: x @ w.T, 1, **more)


def moments_of(inputs: Tensor, weight: Tensor, drift: float = 0.0) -> InputStatistics:
    """Of the same layer."""
    gram = (inputs.T @ inputs / len(inputs))[None]
    outputs = inputs @ weight.T
    return InputStatistics(
        DenseMoments(gram=gram, drift=-drift * weight @ gram, drifts=drift != 0),
        float((drift * outputs).square().sum(1).mean()),
        float(((1 + drift) * outputs).square().sum(1).mean()), len(inputs),
    )  # fmt: skip


def output_error(inputs: Tensor, weight: Tensor, codes: Tensor, step: float, drift: float = 0.0) -> float:
    """Brute force."""
    return float((inputs @ (codes.float() * step).T - (1 + drift) * inputs @ weight.T).square().sum(1).mean())


def correlated(count: int, size: int, seed: int = 0) -> Tensor:
    """Positive inputs that share most of their variance, like those behind a ReLU."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.rand(count, 3, generator=generator) @ torch.rand(3, size, generator=generator)
    return common + 0.2 * torch.rand(count, size, generator=generator)


@dataclass(frozen=True)
class Weighing(Invariant):
    """`Invariant` with a given weight of the stamped copies."""

    weight: float = 1.0

    def stamp_weight(self, scheme: QuantScheme) -> float:
        return self.weight
