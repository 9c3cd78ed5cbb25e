"""Second moments of a layer's inputs: all that the output error of a choice of integers depends on.

For a layer with weight W (O, D), float-prefix inputs x and quantized-prefix inputs x', the mean squared output error
of a quantized weight V = W + D is ``tr(D H D^T) + 2 tr(D E[x' (W x' - W x)^T]) + E ||W x' - W x||^2`` with ``H = E[x'
x'^T]``. Grouped convolutions have these for each group. Where the outputs should be W x + r, with r what a residual
connection owes, ``W x' - W x`` is ``W x' - W x - r``. The error of another target, W + lambda R, needs the same of R.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from quantinel.model.graph import Layer, aten
from quantinel.quantization.moments import DenseMoments, Moments, SampledMoments

_CHUNK_VALUES = 1 << 22
"""Float values of one block of patches (16 MiB)."""
_STRIP = 384
"""Rows of H that one product computes: H is symmetric, and only what is right of its diagonal blocks is computed."""
WIDEST = 6144
"""Inputs up to which H is stored as a matrix (150 MB); wider layers keep sampled vectors instead."""
_SAMPLED_VALUES = 1 << 27
"""Values of the vectors that a wide layer keeps (512 MiB): 5,349 vectors of 25,088 inputs."""


@dataclass(frozen=True)
class InputStatistics:
    """Second moments of the inputs of one layer.

    Attributes:
        moments: H of the quantized prefix, and what inputs that drifted do to the outputs.
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
            error += self.moments.outputs(begin, begin + share).excess(difference[:, part])
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

    They are gathered from channels-last memory, so that every copy moves whole runs of channels; a vector is therefore
    ordered (kernel position, channel).
    """

    def __init__(self, node: fx.Node, weight: Tensor, groups: int, shape: torch.Size) -> None:
        self.window, self.groups = _window(node, weight), groups
        left, right, top, bottom = self.window.padding
        height, width = (shape[2] if len(shape) == 4 else 1) + top + bottom, shape[-1] + left + right
        spans = [
            (kernel - 1) * dilation + 1
            for kernel, dilation in zip(self.window.kernel, self.window.dilation, strict=True)
        ]
        self.rows = (height - spans[0]) // self.window.stride[0] + 1
        self.columns = (width - spans[1]) // self.window.stride[1] + 1

    @property
    def area(self) -> int:
        """Output positions of one image."""
        return self.rows * self.columns

    def _reach(self, place: Tensor, dimension: int) -> Tensor:
        """Pixels (R, K) along one dimension that outputs at ``place`` (R,) see, beyond the image where it is padded."""
        before = self.window.padding[2 - 2 * dimension]
        steps = torch.arange(self.window.kernel[dimension]) * self.window.dilation[dimension]
        return (place * self.window.stride[dimension] - before)[:, None] + steps

    def gather(self, x: Tensor, chosen: Tensor) -> Tensor:
        """Vectors (G, R, D) at ``chosen`` (R,) = image * area + position of a block of images (N, C, ...)."""
        x = x if x.ndim == 4 else x.unsqueeze(2)
        channels, height, width = x.shape[1:]
        place = chosen % self.area
        down = self._reach(place // self.columns, 0)
        across = self._reach(place % self.columns, 1)
        inside = ((down >= 0) & (down < height))[:, :, None] & ((across >= 0) & (across < width))[:, None]
        pixel = (chosen // self.area * height)[:, None, None] + down[:, :, None]
        index = (pixel * width + across[:, None]).mul_(inside)
        found = x.permute(0, 2, 3, 1).reshape(-1, channels).index_select(0, index.flatten())
        found.index_fill_(0, inside.logical_not().flatten().nonzero().squeeze(1), 0.0)  # padding
        if self.groups == 1:
            return found.reshape(1, len(chosen), -1)
        found = found.reshape(len(chosen), -1, self.groups, channels // self.groups)
        return found.permute(2, 0, 1, 3).reshape(self.groups, len(chosen), -1)


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
    rounding_error: Tensor | None = None,
) -> InputStatistics:
    """Accumulate the second moments of one layer in float32; a layer wider than `WIDEST` keeps its vectors instead.

    Args:
        layer: the layer.
        node: its node, for stride, padding and dilation.
        weight: W, (O, ...) float.
        quantized_input: (N, ...) what the layer receives in the quantized network.
        float_input: the same in the float network.
        max_positions: at most about this many input vectors (at least one an image); a larger layer is sampled at
            random positions, the same ones on both sides.
        generator: of the sample.
        owed: r, of the shape of the layer's outputs: they should be W x + r; None for 0.
        rounding_error: R, (O, ...), for targets that lean along it; None where none does.
    """
    size = weight[0].numel()
    shared = quantized_input is float_input
    directions = [weight] if rounding_error is None or shared else [weight, rounding_error]
    collector: type[_Collector] = _Moments
    if layer.groups * size**2 > WIDEST**2:
        collector, max_positions = _Vectors, min(max_positions, max(1, _SAMPLED_VALUES // (size * layer.groups)))
    if layer.kind == "linear":
        moments = collector([value.reshape(1, -1, size) for value in directions], shared, owed is not None)
        rows, other = quantized_input.reshape(1, -1, size), float_input.reshape(1, -1, size)
        extra = None if owed is None else owed.reshape(1, -1, len(weight))
        if rows.shape[1] > max_positions:
            keep = torch.randperm(rows.shape[1], generator=generator)[:max_positions]
            rows, other = rows[:, keep], other[:, keep]
            extra = None if extra is None else extra[:, keep]
        moments.add(rows, None if shared else rows - other, extra)
        return moments.finish()
    patches = _Patches(node, weight, layer.groups, quantized_input.shape)
    kernel = patches.window.kernel[0] * patches.window.kernel[1]
    # (O, I, K) -> groups of (O / G, K * I): the order in which patches are gathered
    moments = collector(
        [value.flatten(2).transpose(1, 2).reshape(layer.groups, -1, size) for value in directions],
        shared,
        owed is not None,
    )
    n = len(quantized_input)
    per_image = min(patches.area, max(1, max_positions // n))
    step = max(1, _CHUNK_VALUES // (per_image * size * layer.groups))
    for start in range(0, n, step):
        a, b = quantized_input[start : start + step], float_input[start : start + step]
        chosen = torch.arange(len(a) * patches.area)
        if per_image < patches.area:
            picks = torch.rand(len(a), patches.area, generator=generator).topk(per_image, dim=1).indices
            chosen = (picks + patches.area * torch.arange(len(a))[:, None]).flatten()
        extra = None
        if owed is not None:
            channels_last = owed[start : start + step].flatten(2).transpose(1, 2).reshape(-1, len(weight))
            extra = channels_last[chosen].reshape(len(chosen), layer.groups, -1).transpose(0, 1)
        moments.add(patches.gather(a, chosen), None if shared else patches.gather(a - b, chosen), extra)
    return moments.finish(torch.arange(size).reshape(kernel, size // kernel).t().flatten())


class _Collector:
    """Running sums over input vectors.

    Args:
        directions: the float weight W in the order of the vectors, (G, O / G, D), and the rounding error R where
            targets lean.
        shared: both prefixes are the same tensor, so nothing drifts.
        owing: outputs should be W x + r.
    """

    def __init__(self, directions: list[Tensor], shared: bool, owing: bool) -> None:
        self.groups, self.channels, self.size = directions[0].shape
        self.directions, self.shared, self.owing = directions, shared, owing
        self.count, self.error_energy, self.energy = 0, 0.0, 0.0
        self.weight = directions[0].transpose(1, 2)
        self.drifting = torch.cat(directions, dim=1).transpose(1, 2) if self.projects() else self.weight

    def projects(self) -> bool:
        """Whether `keep` is to see what drift does along R as well."""
        return True

    def add(self, rows: Tensor, drift: Tensor | None, owed: Tensor | None) -> None:
        """Add vectors x' of the quantized prefix and x' - x, both (G, R, D), and r, (G, R, O / G)."""
        outputs, off, lean = rows @ self.weight, None, None
        if drift is not None:
            both = drift @ self.drifting
            off, lean = both[:, :, : self.channels], both[:, :, self.channels :]
            outputs -= off
        if owed is not None:
            off = -owed if off is None else off.sub_(owed)
        self.energy += float(torch.linalg.vector_norm(outputs)) ** 2
        if off is not None:
            self.error_energy += float(torch.linalg.vector_norm(off)) ** 2
        self.count += rows.shape[1]
        self.keep(rows, drift, off, lean if lean is not None and lean.shape[2] else None)

    def keep(self, rows: Tensor, drift: Tensor | None, off: Tensor | None, lean: Tensor | None) -> None:
        """Store what the moments need; W x' - W x - r and R x' - R x, (G, R, O / G), None for 0 or not asked."""
        raise NotImplementedError

    def moments(self, order: Tensor | None) -> Moments:
        """With the inputs in ``order``, (D,)."""
        raise NotImplementedError

    def finish(self, order: Tensor | None = None) -> InputStatistics:
        """Means, in the weight's own order."""
        return InputStatistics(
            self.moments(order), self.error_energy / self.count, self.energy / self.count, self.count
        )


class _Moments(_Collector):
    """Sums of outer products: H, and what drift does with a layer's outputs times its inputs.

    The second needs few sums where outputs are few. Where they are many, E[(x' - x) x'^T] is less work, and the weights
    follow at the end.
    """

    def __init__(self, directions: list[Tensor], shared: bool, owing: bool) -> None:
        super().__init__(directions, shared, owing)
        self.gram = torch.zeros(self.groups, self.size, self.size)
        self.gap = None if self.projects() else torch.zeros_like(self.gram)
        self.sums = [torch.zeros_like(each) for each in directions] if self.projects() and (owing or not shared) else []

    def projects(self) -> bool:
        products = 2 * len(self.directions) - 1  # one more for each direction, and outputs along R
        return self.shared or self.owing or products * self.channels < self.size

    def keep(self, rows: Tensor, drift: Tensor | None, off: Tensor | None, lean: Tensor | None) -> None:
        left = rows.transpose(1, 2)
        for begin in range(0, self.size, _STRIP):
            strip = slice(begin, begin + _STRIP)
            self.gram[:, strip, begin:].baddbmm_(left[:, strip], rows[:, :, begin:])
        if self.gap is not None:
            assert drift is not None
            self.gap.baddbmm_(drift.transpose(1, 2), rows)
            return
        for total, part in zip(self.sums, (off, lean), strict=False):
            if part is not None:
                total.baddbmm_(part.transpose(1, 2), rows)

    def moments(self, order: Tensor | None) -> Moments:
        for begin in range(0, self.size, _STRIP):  # what is left of the diagonal blocks
            end = begin + _STRIP
            self.gram[:, end:, begin:end] = self.gram[:, begin:end, end:].transpose(1, 2)
        gram = self.gram.div_(self.count)
        sums = self.sums if self.gap is None else [each @ self.gap for each in self.directions]
        drifts = [each.div_(self.count) for each in sums]
        if order is not None:
            gram = gram[:, order[:, None], order]
            drifts = [each[:, :, order] for each in drifts]
        drift, error_drift = (*drifts, None, None)[:2]
        return DenseMoments(gram=gram, drift=drift, error_drift=error_drift, drifts=not self.shared)


class _Vectors(_Collector):
    """The vectors themselves, for layers whose H would not fit."""

    def __init__(self, directions: list[Tensor], shared: bool, owing: bool) -> None:
        super().__init__(directions, shared, owing)
        self.rows: list[Tensor] = []
        self.drifts: tuple[list[Tensor], list[Tensor]] = ([], [])

    def keep(self, rows: Tensor, drift: Tensor | None, off: Tensor | None, lean: Tensor | None) -> None:
        self.rows.append(rows)
        for kept, part in zip(self.drifts, (off, lean), strict=True):
            if part is not None:
                kept.append(part.transpose(1, 2))

    def moments(self, order: Tensor | None) -> Moments:
        rows = torch.cat(self.rows, dim=1)
        self.rows.clear()
        drift, error_drift = (torch.cat(kept, dim=2) if kept else None for kept in self.drifts)
        return SampledMoments(
            rows=rows if order is None else rows[:, :, order],
            drift=drift, error_drift=error_drift, drifts=not self.shared,
        )  # fmt: skip
