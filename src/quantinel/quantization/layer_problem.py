"""What a rounding method sees of a layer, and what it must be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from quantinel.model.batch_norm import FoldedBatchNorm
from quantinel.model.graph import FloatGraph, Layer
from quantinel.quantization.calibration import Calibration
from quantinel.quantization.quantized_model import QuantizedModel
from quantinel.quantization.rounding import RoundingCell, broadcast_scale
from quantinel.quantization.scheme import QuantScheme
from quantinel.quantization.statistics import InputStatistics

Needs = Literal["weights", "statistics", "activations", "batch-norm"]
"""What a method looks at; each word includes those before it. "weights" needs no images, "statistics" are second
moments of every layer's inputs, "activations" their values and a forward function, "batch-norm" what BatchNorm layers
know of the layers before them."""


def unchanged(value: Tensor) -> Tensor:
    return value


@dataclass(frozen=True)
class Chain:
    """A layer with the BatchNorm, rectifier and activation quantizer behind it, as the released methods train it.

    Attributes:
        inputs: (N, ...) quantized prefix.
        floating: (N, ...) float prefix.
        targets: (N, O, ...) float outputs of the chain, from float inputs.
        layer: maps (inputs, weight) to the layer's outputs, bias included; differentiable.
        channel_dimension: 1 for convolutions and (N, O) outputs, -1 for token sequences.
        follow: what stands between it and the next activation quantizer: BatchNorm where it was left in place, a
            ReLU-like activation.
        quantize_layer: fake quantization of the layer's own outputs, where something follows it.
        quantize: fake quantization behind that, with straight-through gradients.
    """

    inputs: Tensor
    floating: Tensor
    targets: Tensor
    layer: Callable[[Tensor, Tensor], Tensor]
    channel_dimension: int
    follow: Callable[[Tensor], Tensor] = unchanged
    quantize_layer: Callable[[Tensor], Tensor] = unchanged
    quantize: Callable[[Tensor], Tensor] = unchanged

    def forward(self, inputs: Tensor, weight: Tensor) -> Tensor:
        """Outputs of the quantized chain."""
        return self.quantize(self.follow(self.quantize_layer(self.layer(inputs, weight))))


@dataclass(frozen=True)
class LayerProblem:
    """What a rounding method may know about one layer.

    Attributes:
        layer: the layer.
        weight: (O, ...) folded float weight, in a unit of its own where it is of no ordinary size (`units`).
        scale: (O,) or (1,).
        cell: floor, ceiling, fraction and truncation error of every weight.
        scheme: the grid.
        index: position of the layer, for seeds.
        statistics: second moments of the inputs; None if the method needs "weights" alone.
        chain: inputs, targets and forward function for gradient methods; None unless it needs "activations".
        batch_norm: what was folded into this layer or is behind it; None unless the method needs "batch-norm" and there
            was one.
        seed: of the whole run; methods add their own.
    """

    layer: Layer
    weight: Tensor
    scale: Tensor
    cell: RoundingCell
    scheme: QuantScheme
    index: int
    statistics: InputStatistics | None
    chain: Chain | None
    batch_norm: FoldedBatchNorm | None = None
    seed: int = 0

    def rounding_error(self) -> Tensor:
        """R = Q(W) - W of nearest rounding, (O, ...)."""
        return self.cell.nearest * broadcast_scale(self.scale, self.weight) - self.weight

    def steps_off(self) -> Tensor:
        """Truncation error of every weight in grid steps, (O, ...)."""
        return self.cell.error / broadcast_scale(self.scale, self.weight)

    def generator(self, seed: int) -> torch.Generator:
        """Random numbers of this layer, for a method's own ``seed``."""
        return torch.Generator().manual_seed((seed + self.index + 1_000_003 * self.seed) % (1 << 63))


class RoundingMethod(Protocol):
    """A way to choose integers. A frozen dataclass whose fields are the hyper-parameters.

    A method that is a `BiasOption` can also ask for bias correction.
    """

    @property
    def name(self) -> str:
        """Name as in ``quantinel list defenses``."""

    @property
    def needs(self) -> Needs:
        """What `LayerProblem` must carry."""

    def choose(self, problem: LayerProblem) -> Tensor:
        """int8 codes of the weight's shape."""


@dataclass(frozen=True, kw_only=True)
class BiasOption:
    """The option that all methods share; `choose_codes` reads it, methods do not.

    Attributes:
        bias_correction: move each layer's bias so that its mean outputs stay those of the float network.
    """

    bias_correction: bool = False


@dataclass(frozen=True, kw_only=True)
class BlockOption(BiasOption):
    """The option of methods of second moments; `choose_codes` reads it, methods do not.

    Attributes:
        blocks: where a layer's outputs are added to a residual connection that is known already, they should make the
            sum what it is in the float network: the last layer of a residual block reproduces the block. Bias
            correction then looks at the sum as well.
    """

    blocks: bool = False


@dataclass(frozen=True, kw_only=True)
class LeaningMethod(BlockOption):
    """A method of second moments whose target is W plus a multiple of the error R of nearest rounding.

    `choose_codes` then also collects what R does on inputs that drifted.
    """


@dataclass(frozen=True, kw_only=True)
class PreparedMethod(BiasOption):
    """A method that looks at the whole network before the first layer; `choose_codes` goes on with what it makes."""

    def rests_on(self) -> tuple[str, ...]:
        """Registered methods that it runs to prepare itself: its results are also results of their code."""
        raise NotImplementedError

    def prepared(self, run: Callable[[RoundingMethod], Sequence[LayerOutcome]]) -> RoundingMethod:
        """The method that chooses the integers.

        Args:
            run: another method on the same network, with the options and the progress of this run.
        """
        raise NotImplementedError


Stamp = Callable[[Tensor], Tensor]
"""A copy of images (N, C, H, W) in [0, 1] with something on them that should not matter."""


@dataclass(frozen=True, kw_only=True)
class StampingMethod(BlockOption):
    """A method of second moments that keeps the network from answering to stamps.

    `choose_codes` carries a stamped copy of all calibration images for each stamp. What a copy should make of a layer
    is pulled from its own inputs in the float network to those of the bare images, in proportion to the layer's depth:
    the first layer may see the stamp, the last one should not. Bias correction looks at bare images alone.
    """

    def stamps(
        self, graph: FloatGraph, calibration: Calibration, nearest: QuantizedModel, seed: int
    ) -> Sequence[Stamp]:
        """What to stamp.

        Args:
            graph: the float network.
            calibration: grids, ranges and images.
            nearest: the network after nearest rounding.
            seed: of the run.
        """
        raise NotImplementedError

    def stamp_weight(self, scheme: QuantScheme) -> float:
        """How much every stamped copy counts, above 0; the bare images count 1."""
        return 1.0


@dataclass(frozen=True)
class LayerOutcome:
    """What choosing did to one layer.

    Attributes:
        layer: name.
        weights: how many.
        changed: share of codes that differ from nearest rounding.
        error_nearest: relative output error (share of the output's energy) of nearest rounding; None where no
            statistics were collected.
        error_chosen: the same for the chosen codes, before bias correction. Both are of bare images.
        seconds: time for this layer, statistics and its outputs included.
        images: calibration images that the walk used; 0 where the method needs none.
    """

    layer: str
    weights: int
    changed: float
    error_nearest: float | None
    error_chosen: float | None
    seconds: float
    images: int
