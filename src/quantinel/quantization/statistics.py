"""Second moments of a layer's inputs: all that the output error of a choice of integers depends on.

For a layer with weight W (O, D), float-prefix inputs x and quantized-prefix inputs x', the mean squared output
error of a quantized weight V is ``tr(V H V^T) - 2 tr(V C W^T) + tr(W E[x x^T] W^T)`` with ``H = E[x' x'^T]``
and ``C = E[x' x^T]``. Grouped convolutions have one such pair per group. Where the outputs should be W x + r, with r
what a residual connection owes, ``E[r x'^T]`` joins them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from quantinel.model.graph import Layer, aten
from quantinel.quantization.moments import DenseMoments, Moments, SampledMoments

_CHUNK_VALUES = 1 << 24
"""Float values of one block of patches (64 MiB)."""
WIDEST = 6144
"""Inputs up to which H and C are stored as matrices (150 MB each); wider layers keep sampled vectors instead."""
_SAMPLED_VALUES = 1 << 27
"""Values of the vectors that a wide layer keeps (512 MiB): 5,349 vectors of 25,088 inputs."""


@dataclass(frozen=True)
class InputStatistics:
    """Second moments of the inputs of one layer.

    Attributes:
        moments: H of the quantized prefix, and C of both.
        drift: E ||W x' - W x - r||^2, error that earlier layers cause and this layer starts from.
        output_energy: E ||W x||^2, to make errors relative.
        positions: input vectors averaged.
    """

    moments: Moments
    drift: float
    output_energy: float
    positions: int

    def output_error(self, weight: Tensor, rounded: Tensor) -> float:
        """Mean squared output error E ||V x' - W x||^2, summed over output channels.

        Output channels come in shares, so that wide layers need little more memory than their moments.

        Args:
            weight: W, (O, ...).
            rounded: V, dequantized, the same shape.
        """
        groups, size = self.moments.diagonal().shape
        wide = weight.reshape(groups, -1, size)
        difference = rounded.reshape(groups, -1, size) - wide
        error, share = self.drift, max(1, _CHUNK_VALUES // (groups * size))
        for begin in range(0, wide.shape[1], share):
            part = slice(begin, begin + share)
            error += self.moments.outputs(begin, begin + share).excess(difference[:, part], wide[:, part])
        return max(error, 0.0)


@dataclass(frozen=True)
class _Window:
    """Geometry of a convolution, padded to two dimensions."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]


def _pair(value: object, dimensions: int) -> tuple[int, int]:
    items = [int(item) for item in value] if isinstance(value, list | tuple) else [int(value)]  # type: ignore[call-overload]
    if len(items) == 1:
        items = items * dimensions
    return (1 if dimensions == 1 else items[0], items[-1])


def _window(node: fx.Node, weight: Tensor) -> _Window:
    dimensions = weight.ndim - 2
    args = [*node.args, *([None] * 7)]
    stride = _pair(args[3], dimensions) if args[3] is not None else (1, 1)
    dilation = _pair(args[5], dimensions) if args[5] is not None else (1, 1)
    kernel = (int(weight.shape[-2]) if dimensions == 2 else 1, int(weight.shape[-1]))
    span = [(size - 1) * step for size, step in zip(kernel, dilation, strict=True)]
    if node.target in (aten.conv2d.padding, aten.conv1d.padding):
        total = span if args[4] == "same" else [0, 0]
        top, left = total[0] // 2, total[1] // 2
        padding = (left, total[1] - left, top, total[0] - top)
    else:
        rows, columns = _pair(args[4], dimensions) if args[4] is not None else (0, 0)
        rows = 0 if dimensions == 1 else rows
        padding = (columns, columns, rows, rows)
    return _Window(kernel, stride, padding, dilation)


class _Patches:
    """Input vectors of a convolution at chosen output positions.

    Rows are gathered from channels-last memory one kernel offset at a time, so that every copy moves whole runs of
    channels; a vector is therefore ordered (kernel position, channel).
    """

    def __init__(self, node: fx.Node, weight: Tensor, groups: int, shape: torch.Size) -> None:
        self.window, self.groups = _window(node, weight), groups
        left, right, top, bottom = self.window.padding
        height, width = (shape[2] if len(shape) == 4 else 1) + top + bottom, shape[-1] + left + right
        spans = [
            (kernel - 1) * dilation + 1
            for kernel, dilation in zip(self.window.kernel, self.window.dilation, strict=True)
        ]
        self.padded = (height, width)
        self.rows = (height - spans[0]) // self.window.stride[0] + 1
        self.columns = (width - spans[1]) // self.window.stride[1] + 1

    @property
    def area(self) -> int:
        """Output positions of one image."""
        return self.rows * self.columns

    def gather(self, x: Tensor, chosen: Tensor) -> Tensor:
        """Vectors (G, R, D) at ``chosen`` (R,) = image * area + position of a block of images (N, C, ...)."""
        x = F.pad(x if x.ndim == 4 else x.unsqueeze(2), self.window.padding)
        channels = x.shape[1]
        flat = x.permute(0, 2, 3, 1).reshape(-1, channels)
        image, place = chosen // self.area, chosen % self.area
        start = (image * self.padded[0] + place // self.columns * self.window.stride[0]) * self.padded[1]
        start = start + place % self.columns * self.window.stride[1]
        parts = [
            flat.index_select(
                0, start + row * self.window.dilation[0] * self.padded[1] + column * self.window.dilation[1]
            )
            for row in range(self.window.kernel[0])
            for column in range(self.window.kernel[1])
        ]
        if self.groups == 1:
            return torch.cat(parts, dim=1).unsqueeze(0)
        stacked = torch.stack(parts, dim=1).reshape(len(chosen), len(parts), self.groups, channels // self.groups)
        return stacked.permute(2, 0, 1, 3).reshape(self.groups, len(chosen), -1)


def input_statistics(
    layer: Layer,
    node: fx.Node,
    weight: Tensor,
    quantized_input: Tensor,
    float_input: Tensor,
    *,
    max_positions: int,
    generator: torch.Generator,
    owed: Tensor | None = None,
) -> InputStatistics:
    """Accumulate H and C of one layer in float32; a layer wider than `WIDEST` keeps its vectors instead.

    Args:
        layer: the layer.
        node: its node, for stride, padding and dilation.
        weight: (O, ...) float.
        quantized_input: (N, ...) what the layer receives in the quantized network.
        float_input: the same in the float network.
        max_positions: at most about this many input vectors (at least one an image); a larger layer is sampled at
            random positions, the same ones on both sides.
        generator: of the sample.
        owed: r, of the shape of the layer's outputs: they should be W x + r; None for 0.
    """
    size = weight[0].numel()
    shared = quantized_input is float_input
    collector: type[_Collector] = _Moments
    if layer.groups * size**2 > WIDEST**2:
        collector, max_positions = _Vectors, min(max_positions, max(1, _SAMPLED_VALUES // (size * layer.groups)))
    if layer.kind == "linear":
        moments = collector(weight.reshape(1, -1, size), shared)
        rows, other = quantized_input.reshape(1, -1, size), float_input.reshape(1, -1, size)
        extra = None if owed is None else owed.reshape(1, -1, len(weight))
        if rows.shape[1] > max_positions:
            keep = torch.randperm(rows.shape[1], generator=generator)[:max_positions]
            rows, other = rows[:, keep], other[:, keep]
            extra = None if extra is None else extra[:, keep]
        moments.add(rows, other, extra)
        return moments.finish()
    patches = _Patches(node, weight, layer.groups, quantized_input.shape)
    kernel = patches.window.kernel[0] * patches.window.kernel[1]
    # (O, I, K) -> groups of (O / G, K * I): the order in which patches are gathered
    moments = collector(weight.flatten(2).transpose(1, 2).reshape(layer.groups, -1, size), shared)
    n = len(quantized_input)
    per_image = min(patches.area, max(1, max_positions // n))
    step = max(1, _CHUNK_VALUES // (per_image * size * layer.groups))
    for start in range(0, n, step):
        a, b = quantized_input[start : start + step], float_input[start : start + step]
        chosen = torch.arange(len(a) * patches.area)
        if per_image < patches.area:
            picks = torch.rand(len(a), patches.area, generator=generator).topk(per_image, dim=1).indices
            chosen = (picks + patches.area * torch.arange(len(a))[:, None]).flatten()
        rows, extra = patches.gather(a, chosen), None
        if owed is not None:
            channels_last = owed[start : start + step].flatten(2).transpose(1, 2).reshape(-1, len(weight))
            extra = channels_last[chosen].reshape(len(chosen), layer.groups, -1).transpose(0, 1)
        moments.add(rows, rows if shared else patches.gather(b, chosen), extra)
    return moments.finish(torch.arange(size).reshape(kernel, size // kernel).t().flatten())


class _Collector:
    """Running sums over input vectors.

    Args:
        weight: float weight in the order of the vectors, (G, O / G, D).
        shared: both prefixes are the same tensor, so C = H and nothing drifts.
    """

    def __init__(self, weight: Tensor, shared: bool) -> None:
        self.weight, self.shared, self.count = weight.transpose(1, 2), shared, 0
        self.drift = self.energy = 0.0

    def add(self, rows: Tensor, other: Tensor, owed: Tensor | None) -> None:
        """Add vectors of the quantized prefix and of the float prefix, both (G, R, D), and r, (G, R, O / G)."""
        outputs = other @ self.weight
        self.energy += float(torch.linalg.vector_norm(outputs)) ** 2
        if not self.shared or owed is not None:
            start = (rows - other) @ self.weight
            self.drift += float(torch.linalg.vector_norm(start if owed is None else start - owed)) ** 2
        self.count += rows.shape[1]
        self.keep(rows, other, outputs, owed)

    def keep(self, rows: Tensor, other: Tensor, outputs: Tensor, owed: Tensor | None) -> None:
        """Store what the moments need; ``outputs`` are those of the float layer, (G, R, O / G)."""
        raise NotImplementedError

    def moments(self, order: Tensor | None) -> Moments:
        """With the inputs in ``order``, (D,)."""
        raise NotImplementedError

    def finish(self, order: Tensor | None = None) -> InputStatistics:
        """Means, in the weight's own order."""
        return InputStatistics(self.moments(order), self.drift / self.count, self.energy / self.count, self.count)


class _Moments(_Collector):
    """Sums of outer products."""

    def __init__(self, weight: Tensor, shared: bool) -> None:
        super().__init__(weight, shared)
        groups, _, size = weight.shape
        self.gram = torch.zeros(groups, size, size)
        self.cross = self.gram if shared else torch.zeros(groups, size, size)
        self.owed: Tensor | None = None

    def keep(self, rows: Tensor, other: Tensor, outputs: Tensor, owed: Tensor | None) -> None:
        left = rows.transpose(1, 2)
        self.gram.baddbmm_(left, rows)
        if not self.shared:
            self.cross.baddbmm_(left, other)
        if owed is not None:
            part = owed.transpose(1, 2) @ rows
            self.owed = part if self.owed is None else self.owed.add_(part)

    def moments(self, order: Tensor | None) -> Moments:
        gram = self._mean(self.gram, order)
        owed = None if self.owed is None else self.owed.div_(self.count)
        if owed is not None and order is not None:
            owed = owed[:, :, order]
        return DenseMoments(gram, gram if self.shared else self._mean(self.cross, order), owed)

    def _mean(self, value: Tensor, order: Tensor | None) -> Tensor:
        value.div_(self.count)
        return value if order is None else value[:, order][:, :, order]


class _Vectors(_Collector):
    """The vectors themselves, for layers whose H would not fit."""

    def __init__(self, weight: Tensor, shared: bool) -> None:
        super().__init__(weight, shared)
        self.rows: list[Tensor] = []
        self.targets: list[Tensor] = []

    def keep(self, rows: Tensor, other: Tensor, outputs: Tensor, owed: Tensor | None) -> None:
        self.rows.append(rows)
        self.targets.append((outputs if owed is None else outputs + owed).transpose(1, 2))

    def moments(self, order: Tensor | None) -> Moments:
        rows, weight = torch.cat(self.rows, dim=1), self.weight.transpose(1, 2)
        self.rows.clear()
        if order is not None:
            rows, weight = rows[:, :, order], weight[:, :, order]
        return SampledMoments(rows, torch.cat(self.targets, dim=2), weight)
