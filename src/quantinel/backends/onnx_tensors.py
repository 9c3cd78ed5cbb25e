"""Converters of operators that compare, select, index, repeat and move values; see `onnx_operators`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import torch
from torch import fx

from quantinel.backends.onnx_builder import GraphBuilder
from quantinel.backends.onnx_operators import (
    Arguments,
    Converter,
    converts,
    input_rank,
    input_shape,
    operand,
    rank,
    shape_tensor,
)
from quantinel.errors import UnsupportedError

_TYPES = {
    torch.float32: onnx.TensorProto.FLOAT,
    torch.int64: onnx.TensorProto.INT64,
    torch.bool: onnx.TensorProto.BOOL,
}

_COMPARISONS = {"gt": "Greater", "ge": "GreaterOrEqual", "lt": "Less", "le": "LessOrEqual", "eq": "Equal"}
_EXTREMES = {"maximum": "Max", "minimum": "Min"}


def _binary(name: str) -> Converter:
    def convert(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
        return b.add(name, [operand(b, a["self"]), operand(b, a["other"])])

    return convert


for _name, _target in (_COMPARISONS | _EXTREMES).items():
    converts(_name)(_binary(_target))


@converts("ne")
def _not_equal(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    return b.add("Not", [b.add("Equal", [operand(b, a["self"]), operand(b, a["other"])])])


@converts("logical_not", "bitwise_not")
def _not(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    if source.meta["val"].dtype is not torch.bool:
        raise UnsupportedError(f"operator {node.target} on numbers is not supported; compare them first")
    return b.add("Not", [a["self"]])


@converts("where")
def _where(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    if "self" not in a:
        raise UnsupportedError("where() with one argument has no fixed result shape; give it three")
    return b.add("Where", [a["condition"], operand(b, a["self"]), operand(b, a["other"])])


@converts("masked_fill")
def _masked_fill(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    return b.add("Where", [a["mask"], operand(b, a["value"]), a["self"]])


@converts("to", "_to_copy", "type_as")
def _to(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    before, after = source.meta["val"].dtype, node.meta["val"].dtype
    if before is after:
        return str(a["self"])
    if after not in _TYPES:
        raise UnsupportedError(f"the model computes in {after}; export it with .float() and without autocast")
    return b.add("Cast", [a["self"]], to=_TYPES[after])


@converts("channel_shuffle")
def _channel_shuffle(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    _, channels, *extent = (int(size) if index else 0 for index, size in enumerate(input_shape(node)))
    groups = int(a["groups"])
    grouped = b.add("Reshape", [a["self"], b.constant([0, groups, channels // groups, *extent], np.int64)])
    mixed = b.add("Transpose", [grouped], perm=[0, 2, 1, *range(3, 3 + len(extent))])
    return b.add("Reshape", [mixed, b.constant([0, channels, *extent], np.int64)])


@converts("pixel_shuffle")
def _pixel_shuffle(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    return b.add("DepthToSpace", [a["self"]], blocksize=int(a["upscale_factor"]), mode="CRD")


@converts("pixel_unshuffle")
def _pixel_unshuffle(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    if input_rank(node) != 4:
        raise UnsupportedError("pixel_unshuffle of a single image is not supported; give it a batch (N, C, H, W)")
    channels, height, width = (int(size) for size in input_shape(node)[1:])
    factor = int(a["downscale_factor"])
    blocks = [0, channels, height // factor, factor, width // factor, factor]
    split = b.add("Reshape", [a["self"], b.constant(blocks, np.int64)])
    moved = b.add("Transpose", [split], perm=[0, 1, 3, 5, 2, 4])
    shape = [0, channels * factor * factor, height // factor, width // factor]
    return b.add("Reshape", [moved, b.constant(shape, np.int64)])


@converts("unflatten")
def _unflatten(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    shape = input_shape(node)
    axis = a["dim"] % len(shape)
    sizes = list(a["sizes"])
    if axis > 0:  # 0 copies the length, which may be free
        tail = [int(size) for size in shape[axis + 1 :]]
        return b.add("Reshape", [a["self"], shape_tensor(b, [0] * axis + sizes + tail)])
    return b.add("Reshape", [a["self"], shape_tensor(b, sizes + [int(size) for size in shape[1:]])])


@converts("narrow")
def _narrow(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    if not isinstance(a["start"], int) or not isinstance(a["length"], int):
        raise UnsupportedError("narrow() by the batch size is not supported; slice with fixed bounds")
    start = a["start"] % int(input_shape(node)[a["dim"]]) if a["start"] < 0 else a["start"]
    bounds = [b.constant([item], np.int64) for item in (start, start + a["length"], a["dim"])]
    return b.add("Slice", [a["self"], *bounds])


@converts("movedim", "swapaxes")
def _moved_axes(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    dimensions = input_rank(node)
    if "axis0" in a:
        order = list(range(dimensions))
        first, second = a["axis0"] % dimensions, a["axis1"] % dimensions
        order[first], order[second] = second, first
        return b.add("Transpose", [a["self"]], perm=order)
    pairs = [
        [item % dimensions for item in (value if isinstance(value, list | tuple) else [value])]
        for value in (a["source"], a["destination"])
    ]
    rest = iter([axis for axis in range(dimensions) if axis not in pairs[0]])
    placed = dict(zip(pairs[1], pairs[0], strict=True))
    order = [placed[axis] if axis in placed else next(rest) for axis in range(dimensions)]
    return b.add("Transpose", [a["self"]], perm=order)


@converts("flip")
def _flip(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    axes = [axis % input_rank(node) for axis in a["dims"]]
    bounds = [b.constant([value] * len(axes), np.int64) for value in (-1, -(2**62))]
    return b.add("Slice", [a["self"], *bounds, b.constant(axes, np.int64), b.constant([-1] * len(axes), np.int64)])


@converts("roll")
def _roll(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    shape, x = input_shape(node), str(a["self"])
    if not a["dims"]:
        raise UnsupportedError("roll() over the flattened tensor mixes the images of a batch; name the dimensions")
    shifts = a["shifts"] if isinstance(a["shifts"], list | tuple) else [a["shifts"]]
    for shift, dimension in zip(shifts, a["dims"], strict=True):
        axis = dimension % len(shape)
        if not isinstance(shape[axis], int) or not isinstance(shift, int):
            raise UnsupportedError("roll() over the batch dimension is not supported")
        first = shift % shape[axis]
        if first:
            sizes = b.constant([shape[axis] - first, first], np.int64)
            x = b.add("Concat", b.add_many("Split", [x, sizes], 2, axis=axis)[::-1], axis=axis)
    return x


def _lengths(b: GraphBuilder, lengths: list[Any]) -> str:
    """One int64 tensor from numbers and names of one-element tensors; unlike a shape, it may not hold -1."""
    if not any(isinstance(item, str) for item in lengths):
        return b.constant(lengths, np.int64)
    return b.add(
        "Concat", [item if isinstance(item, str) else b.constant([item], np.int64) for item in lengths], axis=0
    )


@converts("repeat", "tile")
def _repeat(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    repeats, x = list(a.get("repeats") or a.get("dims") or []), a["self"]
    missing = len(repeats) - input_rank(node)
    if missing > 0:
        x = b.add("Unsqueeze", [x, b.constant(list(range(missing)), np.int64)])
    return b.add("Tile", [x, _lengths(b, [1] * -missing + repeats)])


@converts("expand_as")
def _expand_as(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    return b.add("Expand", [a["self"], b.add("Shape", [a["other"]])])


@converts("reshape_as", "view_as")
def _reshape_as(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    return b.add("Reshape", [a["self"], b.add("Shape", [a["other"]])])


@converts("zeros", "ones", "full", "new_zeros", "new_ones", "new_full")
def _filled(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    """Only those whose size is the batch's reach this; the others were computed before."""
    name = str(node.target)
    value = 0.0 if "zeros" in name else 1.0 if "ones" in name else float(a["fill_value"])
    if node.meta["val"].dtype is not torch.float32:
        raise UnsupportedError(f"operator {name} of another type than float32 is not supported; use plain numbers")
    return b.add("Expand", [b.constant(value), _lengths(b, list(a["size"]))])


@converts("index_select")
def _index_select(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    return b.add("Gather", [a["self"], a["index"]], axis=a["dim"])


@converts("index")
def _index(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    indices = node.args[1]
    assert isinstance(indices, list | tuple)
    used = [axis for axis, item in enumerate(indices) if item is not None]
    chosen = indices[used[0]] if len(used) == 1 else None
    if not isinstance(chosen, fx.Node) or chosen.meta["val"].dtype is not torch.int64:
        raise UnsupportedError("indexing with masks or along several dimensions at once is not supported; use slices")
    return b.add("Gather", [a["self"], a["indices"][used[0]]], axis=used[0])


@converts("einsum")
def _einsum(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    return b.add("Einsum", a["tensors"], equation=a["equation"])


@converts("addmm", "baddbmm")
def _add_product(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    product = b.add("MatMul", [a.get("mat1") or a["batch1"], a.get("mat2") or a["batch2"]])
    terms = [(product, a["alpha"]), (a["self"], a["beta"])]
    scaled = [name if factor == 1 else b.add("Mul", [name, b.constant(float(factor))]) for name, factor in terms]
    return b.add("Add", scaled)


@converts("glu")
def _glu(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    axis = a["dim"] % rank(node)
    half = int(input_shape(node)[axis]) // 2
    value, gate = b.add_many("Split", [a["self"], b.constant([half, half], np.int64)], 2, axis=axis)
    return b.add("Mul", [value, b.add("Sigmoid", [gate])])


@converts("zeros_like", "ones_like", "full_like")
def _like(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    name = str(node.target)
    value = 0.0 if "zeros" in name else 1.0 if "ones" in name else float(a["fill_value"])
    if node.meta["val"].dtype is not torch.float32 or not math.isfinite(value):
        raise UnsupportedError(f"operator {name} of another type than float32 is not supported; use plain numbers")
    return b.add("Expand", [b.constant(value), b.add("Shape", [a["self"]])])
