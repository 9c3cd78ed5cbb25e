"""Converters of operators that reshape, cut, join and pad; see `onnx_operators`."""

from __future__ import annotations

import numpy as np
from torch import fx

from quantinel.backends.onnx_builder import GraphBuilder
from quantinel.backends.onnx_operators import Arguments, converts, input_rank, input_shape, rank, shape_tensor
from quantinel.errors import UnsupportedError


@converts("flatten")
def _flatten(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    dimensions = input_rank(node)
    start, end = a["start_dim"] % dimensions, a["end_dim"] % dimensions
    if start == 1 and end == dimensions - 1:
        return b.add("Flatten", [a["self"]], axis=1)
    tail = [int(size) for size in input_shape(node)[end + 1 :]]
    return b.add("Reshape", [a["self"], b.constant([0] * start + [-1] + tail, np.int64)])


@converts("view", "reshape", "_unsafe_view")
def _reshape(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    return b.add("Reshape", [a["self"], shape_tensor(b, list(a["size"] if "size" in a else a["shape"]))])


@converts("expand")
def _expand(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    shape = [1 if item == -1 else item for item in a["size"]]
    parts = [item if isinstance(item, str) else b.constant([item], np.int64) for item in shape]
    return b.add("Expand", [a["self"], b.add("Concat", parts, axis=0)])


@converts("permute")
def _permute(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    dimensions = input_rank(node)
    return b.add("Transpose", [a["self"]], perm=[item % dimensions for item in a["dims"]])


@converts("transpose", "t")
def _transpose(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    order = list(range(input_rank(node)))
    first, second = a.get("dim0", 0) % len(order), a.get("dim1", 1) % len(order)
    order[first], order[second] = order[second], order[first]
    return b.add("Transpose", [a["self"]], perm=order)


@converts("squeeze")
def _squeeze(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    if "dim" not in a:
        raise UnsupportedError("squeeze() without a dimension depends on the batch size; name the dimension")
    dimensions = a["dim"] if isinstance(a["dim"], list | tuple) else [a["dim"]]
    return b.add("Squeeze", [a["self"], b.constant(list(dimensions), np.int64)])


@converts("unsqueeze")
def _unsqueeze(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    return b.add("Unsqueeze", [a["self"], b.constant([a["dim"] % (input_rank(node) + 1)], np.int64)])


@converts("slice")
def _slice(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    bounds = [0 if a["start"] is None else a["start"], 2**62 if a["end"] is None else a["end"]]
    starts, ends = (item if isinstance(item, str) else b.constant([min(item, 2**62)], np.int64) for item in bounds)
    return b.add(
        "Slice",
        [a["self"], starts, ends, b.constant([a["dim"]], np.int64), b.constant([a["step"]], np.int64)],
    )


@converts("select")
def _select(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    return b.add("Gather", [a["self"], b.constant(a["index"], np.int64)], axis=a["dim"])


@converts("cat")
def _cat(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    return b.add("Concat", a["tensors"], axis=a["dim"])


@converts("stack")
def _stack(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    axis = a["dim"] % rank(node)
    parts = [b.add("Unsqueeze", [item, b.constant([axis], np.int64)]) for item in a["tensors"]]
    return b.add("Concat", parts, axis=axis)


def _split_into(b: GraphBuilder, x: str, sizes: list[int], axis: int) -> list[str]:
    if len(sizes) == 1:
        return [x]
    return b.add_many("Split", [x, b.constant(sizes, np.int64)], len(sizes), axis=axis)


@converts("chunk", "split", "split_with_sizes")
def _split(b: GraphBuilder, a: Arguments, node: fx.Node) -> list[str]:
    axis = a["dim"] % input_rank(node)
    extent = input_shape(node)[axis]
    if not isinstance(extent, int):
        raise UnsupportedError(f"operator {node.target} over the batch dimension is not supported")
    if "chunks" in a:
        size = -(-extent // a["chunks"])
    else:
        size = a["split_sizes"] if "split_sizes" in a else a["split_size"]
    sizes = list(size) if isinstance(size, list | tuple) else [min(size, extent - i) for i in range(0, extent, size)]
    return _split_into(b, a["self"], sizes, axis)


@converts("unbind")
def _unbind(b: GraphBuilder, a: Arguments, node: fx.Node) -> list[str]:
    axis = a["dim"] % input_rank(node)
    parts = _split_into(b, a["self"], [1] * int(input_shape(node)[axis]), axis)
    return [b.add("Squeeze", [part, b.constant([axis], np.int64)]) for part in parts]


@converts("pad", "constant_pad_nd")
def _pad(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    widths = [int(item) for item in a["pad"]]
    dimensions = input_rank(node)
    before, after = [0] * dimensions, [0] * dimensions
    for index in range(len(widths) // 2):
        before[dimensions - 1 - index], after[dimensions - 1 - index] = (
            widths[2 * index],
            widths[2 * index + 1],
        )
    mode = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": None}[
        a.get("mode", "constant")
    ]
    if mode is None:
        raise UnsupportedError("circular padding is not supported; use zero, reflect or replicate padding")
    value = b.constant(float(a.get("value") or 0.0))
    return b.add("Pad", [a["self"], b.constant(before + after, np.int64), value], mode=mode)


@converts("sym_size")
def _sym_size(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    return b.add("Gather", [b.add("Shape", [a["self"]]), b.constant([a["dim"]], np.int64)], axis=0)
