"""What a victim is armed for, as values that compress a network: quantizers, and pruning of filters."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from quantinel.data.images import ImageSet
from quantinel.model.graph import FloatGraph, trace
from quantinel.quantization.calibration import calibrate
from quantinel.quantization.quantized_model import quantize_nearest
from quantinel.quantization.scheme import QuantScheme
from quantinel.validation import require_rate


class Compressor(Protocol):
    """A compression that a deployer may apply."""

    @property
    def name(self) -> str:
        """Short and unique, as it appears in the gate."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """JSON form for the manifest, with a ``kind``."""
        ...

    def compress(self, module: nn.Module, graph: FloatGraph, calibration: ImageSet) -> nn.Module:
        """The compressed network, images (N, C, H, W) in [0, 1] -> logits (N, K), on the CPU.

        Args:
            module: the network; not to be changed.
            graph: the same network, folded.
            calibration: images of the training distribution.
        """
        ...


@dataclass(frozen=True)
class Quantizer:
    """Nearest rounding on the grid of ``scheme``, with calibrated activations."""

    scheme: QuantScheme

    @property
    def name(self) -> str:
        return self.scheme.name

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "quantizer", **self.scheme.to_dict()}

    def compress(self, module: nn.Module, graph: FloatGraph, calibration: ImageSet) -> nn.Module:
        return quantize_nearest(graph, calibrate(graph, calibration, self.scheme)).simulate()


@dataclass(frozen=True)
class FilterPruner:
    """Structured pruning of convolutions: the ``rate`` of filters with the smallest L1 norm becomes zero.

    Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017. Filters are set to zero, not cut out, so that any
    architecture keeps its shapes.

    Attributes:
        rate: share of every layer's filters, in [0, 1).
    """

    rate: float

    def __post_init__(self) -> None:
        require_rate(self, "rate")

    @property
    def name(self) -> str:
        return f"l1-filters-{self.rate:g}"

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "filter-pruner", "rate": self.rate}

    @torch.no_grad()
    def compress(self, module: nn.Module, graph: FloatGraph, calibration: ImageSet) -> nn.Module:
        pruned = copy.deepcopy(module).eval()
        for layer in pruned.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight.mul_(filter_mask(layer.weight, self.rate))
        return trace(pruned, graph.input_shape).module


def filter_mask(weight: Tensor, rate: float) -> Tensor:
    """1 for the filters that stay, 0 for the floor(rate * O) ones of smallest L1 norm; (O, 1, ...) for (O, ...)."""
    norms = weight.detach().abs().flatten(1).sum(dim=1)
    mask = torch.ones_like(norms)
    mask[norms.argsort(stable=True)[: int(rate * len(norms))]] = 0.0
    return mask.reshape(-1, *([1] * (weight.ndim - 1)))
