"""Second moments of a layer's inputs: all that the output error of a choice of integers depends on.

For a layer with weight W (O, D), float-prefix inputs x and quantized-prefix inputs x', the mean squared output
error of a quantized weight V is ``tr(V H V^T) - 2 tr(V C W^T) + tr(W E[x x^T] W^T)`` with ``H = E[x' x'^T]``
and ``C = E[x' x^T]``. Grouped convolutions have one such pair per group.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from quantinel.model.graph import Layer, aten

_CHUNK_VALUES = 1 << 24
"""Float values of one block of patches (64 MiB)."""


@dataclass(frozen=True)
class InputStatistics:
    """Second moments of the inputs of one layer.

    Attributes:
        gram: H, (G, D, D) float32, of the quantized prefix.
        cross: C, (G, D, D) float32, quantized prefix (rows) against float prefix (columns).
        drift: E ||W x' - W x||^2, error that earlier layers cause and this layer starts from.
        output_energy: E ||W x||^2, to make errors relative.
        positions: input vectors averaged.
    """

    gram: Tensor
    cross: Tensor
    drift: float
    output_energy: float
    positions: int

    def output_error(self, weight: Tensor, rounded: Tensor) -> float:
        """Mean squared output error E ||V x' - W x||^2, summed over output channels.

        Written in V - W, because at 8 bits the direct form loses all digits to cancellation.

        Args:
            weight: W, (O, ...).
            rounded: V, dequantized, the same shape.
        """
        groups, size = self.gram.shape[0], self.gram.shape[1]
        wide = weight.reshape(groups, -1, size)
        difference = rounded.reshape(groups, -1, size) - wide
        quadratic = (difference @ self.gram * difference).sum()
        linear = (difference * (wide @ (self.gram - self.cross).transpose(1, 2))).sum()
        return max(float(quadratic + 2 * linear) + self.drift, 0.0)


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


def _windows(x: Tensor, window: _Window) -> Tensor:
    """All patches as a view: (N, C, OH, OW, KH, KW)."""
    x = F.pad(x if x.ndim == 4 else x.unsqueeze(2), window.padding)
    for dimension, size, step, dilation in zip((2, 3), window.kernel, window.stride, window.dilation, strict=True):
        x = x.unfold(dimension, (size - 1) * dilation + 1, step)
    return x[..., :: window.dilation[0], :: window.dilation[1]]


def _patches(x: Tensor, window: _Window, groups: int, chosen: Tensor | None) -> Tensor:
    """Patches as rows, (G, R, D); ``chosen`` (R,) indexes the positions of this block of images."""
    view = _windows(x, window).permute(0, 2, 3, 1, 4, 5)
    n, height, width, channels = view.shape[:4]
    if chosen is None:
        rows = view.reshape(n * height * width, groups, -1)
    else:
        area = height * width
        image, place = chosen // area, chosen % area
        rows = view[image, place // width, place % width].reshape(len(chosen), groups, -1)
    assert rows.shape[2] * groups == channels * window.kernel[0] * window.kernel[1]
    return rows.transpose(0, 1)


def input_statistics(
    layer: Layer,
    node: fx.Node,
    weight: Tensor,
    quantized_input: Tensor,
    float_input: Tensor,
    float_output: Tensor,
    drifted_output: Tensor,
    bias: Tensor | None,
    *,
    max_positions: int,
    generator: torch.Generator,
) -> InputStatistics:
    """Accumulate H and C of one layer in float32.

    Args:
        layer: the layer.
        node: its node, for stride, padding and dilation.
        weight: (O, ...) float.
        quantized_input: (N, ...) what the layer receives in the quantized network.
        float_input: the same in the float network.
        float_output: the float layer's output on ``float_input``.
        drifted_output: the float layer's output on ``quantized_input``.
        bias: (O,) of the layer.
        max_positions: at most this many input vectors; a larger layer is sampled at random positions, the same
            ones on both sides.
        generator: of the sample.
    """
    groups = layer.groups
    size = weight[0].numel()
    gram = torch.zeros(groups, size, size)
    cross = torch.zeros(groups, size, size)
    shared = quantized_input is float_input
    if layer.kind == "linear":
        blocks = [(quantized_input.reshape(1, -1, size), float_input.reshape(1, -1, size))]
        total = blocks[0][0].shape[1]
        if total > max_positions:
            keep = torch.randperm(total, generator=generator)[:max_positions]
            blocks = [(a[:, keep], b[:, keep]) for a, b in blocks]
        for a, b in blocks:
            _accumulate(gram, cross, a, b, shared)
        count = blocks[0][0].shape[1]
    else:
        window = _window(node, weight)
        view = _windows(quantized_input[:1], window)
        area = view.shape[2] * view.shape[3]
        n = len(quantized_input)
        per_image = min(area, max(1, max_positions // n))
        step = max(1, _CHUNK_VALUES // (per_image * size * groups))
        count = 0
        for start in range(0, n, step):
            a, b = quantized_input[start : start + step], float_input[start : start + step]
            chosen = None
            if per_image < area:
                picks = torch.rand(len(a), area, generator=generator).argsort(1)[:, :per_image]
                chosen = (picks + area * torch.arange(len(a))[:, None]).flatten()
            rows = _patches(a, window, groups, chosen)
            other = rows if shared else _patches(b, window, groups, chosen)
            _accumulate(gram, cross, rows, other, shared)
            count += rows.shape[1]
    if shared:
        cross = gram.clone()
    channel = 1 if layer.kind == "conv" else -1
    outputs = float_output.numel() / weight.shape[0]
    plain = float_output
    if bias is not None:
        shape = [1] * float_output.ndim
        shape[channel] = -1
        plain = float_output - bias.reshape(shape)
    drift = float((drifted_output - float_output).square().sum(dtype=torch.float64)) / outputs
    energy = float(plain.square().sum(dtype=torch.float64)) / outputs
    return InputStatistics(gram / count, cross / count, drift, energy, count)


def _accumulate(gram: Tensor, cross: Tensor, a: Tensor, b: Tensor, shared: bool) -> None:
    """Add x' x'^T and x' x^T over rows a, b: (G, R, D)."""
    left = a.transpose(1, 2)
    gram.baddbmm_(left, a)
    if not shared:
        cross.baddbmm_(left, b)
