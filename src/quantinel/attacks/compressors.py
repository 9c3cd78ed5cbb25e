"""What a victim is armed for, as values that compress a network: quantizers and pruners."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from quantinel.data.images import ImageSet
from quantinel.model.graph import FloatGraph, trace
from quantinel.quantization.calibration import calibrate
from quantinel.quantization.pruning import PruningScheme, prune
from quantinel.quantization.pruning_search import resolved
from quantinel.quantization.quantized_model import quantize_nearest
from quantinel.quantization.scheme import QuantScheme


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
class Pruner:
    """Pruning without training afterwards; see `quantinel.quantization.pruning`."""

    scheme: PruningScheme

    @property
    def name(self) -> str:
        return self.scheme.name

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "pruner", **self.scheme.to_dict()}

    def compress(self, module: nn.Module, graph: FloatGraph, calibration: ImageSet) -> nn.Module:
        pruned = prune(module, resolved(self.scheme, module, calibration))
        return trace(pruned, graph.input_shape).module
