"""ATen operators of the traced graph to ONNX, one small function each.

`CONVERTERS` maps the overload packet's name to a function of (builder, arguments by schema name, node) that
returns the name of the result (or a list of names). Everything else is refused by name.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import fx

from quantinel.backends.onnx_builder import GraphBuilder
from quantinel.errors import UnsupportedError

Arguments = dict[str, Any]
Converter = Callable[[GraphBuilder, Arguments, fx.Node], Any]
CONVERTERS: dict[str, Converter] = {}


def converts(*names: str) -> Callable[[Converter], Converter]:
    """Register a converter for ATen operators."""

    def register(function: Converter) -> Converter:
        CONVERTERS.update(dict.fromkeys(names, function))
        return function

    return register


def rank(node: fx.Node) -> int:
    """Dimensions of a node's value, from the exporter's shape record."""
    return len(node.meta["val"].shape)


def pair(value: Any) -> list[int]:
    """One or two integers as two."""
    items = list(value) if isinstance(value, list | tuple) else [value]
    return [int(item) for item in (items * 2 if len(items) == 1 else items)]


def _input_rank(node: fx.Node, position: int = 0) -> int:
    source = node.args[position]
    assert isinstance(source, fx.Node)
    return rank(source)


def _input_shape(node: fx.Node, position: int = 0) -> list[Any]:
    source = node.args[position]
    assert isinstance(source, fx.Node)
    return list(source.meta["val"].shape)


def _operand(b: GraphBuilder, value: Any) -> str:
    return value if isinstance(value, str) else b.constant(float(value))


def shape_tensor(b: GraphBuilder, shape: list[Any]) -> str:
    """A shape with free dimensions (names of one-element tensors) as one int64 tensor."""
    if not any(isinstance(item, str) for item in shape):
        return b.constant(shape, np.int64)
    free = [index for index, item in enumerate(shape) if isinstance(item, str)]
    if len(free) == 1 and -1 not in shape:
        return b.constant([-1 if index == free[0] else item for index, item in enumerate(shape)], np.int64)
    parts = [item if isinstance(item, str) else b.constant([item], np.int64) for item in shape]
    return b.add("Concat", parts, axis=0)


_UNARY = {
    "relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "exp": "Exp", "log": "Log", "sqrt": "Sqrt",
    "reciprocal": "Reciprocal", "abs": "Abs", "neg": "Neg", "erf": "Erf", "hardswish": "HardSwish",
    "floor": "Floor", "softplus": "Softplus", "sin": "Sin", "cos": "Cos",
}  # fmt: skip


def _unary(name: str) -> Converter:
    def convert(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
        return b.add(name, [a["self"]])

    return convert


CONVERTERS.update({name: _unary(target) for name, target in _UNARY.items()})


@converts("relu6")
def _relu6(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    return b.add("Clip", [a["self"], b.constant(0.0), b.constant(6.0)])


@converts("hardtanh")
def _hardtanh(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    return b.add("Clip", [a["self"], b.constant(a["min_val"]), b.constant(a["max_val"])])


@converts("clamp", "clamp_min", "clamp_max")
def _clamp(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    low, high = a.get("min"), a.get("max")
    inputs = [a["self"], "" if low is None else b.constant(low)]
    return b.add("Clip", inputs if high is None else [*inputs, b.constant(high)])


@converts("hardsigmoid")
def _hardsigmoid(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    return b.add("HardSigmoid", [a["self"]], alpha=1.0 / 6.0, beta=0.5)


@converts("leaky_relu")
def _leaky_relu(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    return b.add("LeakyRelu", [a["self"]], alpha=float(a["negative_slope"]))


@converts("elu")
def _elu(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    if a["scale"] != 1 or a["input_scale"] != 1:
        raise UnsupportedError("operator aten.elu with a scale (SELU, CELU) is not supported; use ELU or ReLU")
    return b.add("Elu", [a["self"]], alpha=float(a["alpha"]))


@converts("prelu", "_prelu_kernel")
def _prelu(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    slope = b.add("Reshape", [a["weight"], b.constant([-1] + [1] * (_input_rank(node) - 2), np.int64)])
    return b.add("PRelu", [a["self"], slope])


@converts("silu")
def _silu(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    return b.add("Mul", [a["self"], b.add("Sigmoid", [a["self"]])])


@converts("mish")
def _mish(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    return b.add("Mul", [a["self"], b.add("Tanh", [b.add("Softplus", [a["self"]])])])


@converts("gelu")
def _gelu(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    x = a["self"]
    if a["approximate"] == "tanh":
        cube = b.add("Mul", [b.add("Mul", [x, x]), x])
        inner = b.add("Add", [x, b.add("Mul", [cube, b.constant(0.044715)])])
        gate = b.add("Tanh", [b.add("Mul", [inner, b.constant(math.sqrt(2.0 / math.pi))])])
    else:
        gate = b.add("Erf", [b.add("Div", [x, b.constant(math.sqrt(2.0))])])
    return b.add("Mul", [b.add("Mul", [x, b.add("Add", [gate, b.constant(1.0)])]), b.constant(0.5)])


@converts("rsqrt")
def _rsqrt(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    return b.add("Reciprocal", [b.add("Sqrt", [a["self"]])])


@converts("pow")
def _pow(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    return b.add("Pow", [_operand(b, a["self"]), _operand(b, a["exponent"])])


def _arithmetic(name: str) -> Converter:
    def convert(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
        other = _operand(b, a["other"])
        if a.get("alpha", 1) != 1:
            other = b.add("Mul", [other, b.constant(float(a["alpha"]))])
        if a.get("rounding_mode") is not None:
            raise UnsupportedError(f"operator {node.target} with rounding_mode is not supported; use plain division")
        return b.add(name, [_operand(b, a["self"]), other])

    return convert


CONVERTERS.update({name: _arithmetic(name.capitalize()) for name in ("add", "sub", "mul", "div")})


@converts("rsub")
def _rsub(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    return b.add("Sub", [_operand(b, a["other"]), a["self"]])


def _pool_attributes(a: Arguments) -> dict[str, Any]:
    kernel = pair(a["kernel_size"])
    stride = pair(a["stride"]) if a["stride"] else kernel
    padding = pair(a["padding"])
    return {
        "kernel_shape": kernel, "strides": stride, "pads": [*padding, *padding], "ceil_mode": int(a["ceil_mode"]),
    }  # fmt: skip


@converts("max_pool2d")
def _max_pool(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    return b.add("MaxPool", [a["self"]], dilations=pair(a["dilation"]), **_pool_attributes(a))


@converts("avg_pool2d")
def _average_pool(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    if a["divisor_override"] is not None or a["ceil_mode"]:
        raise UnsupportedError("avg_pool2d with ceil_mode or divisor_override is not supported; use plain pooling")
    attributes = _pool_attributes(a)
    return b.add("AveragePool", [a["self"]], count_include_pad=int(a["count_include_pad"]), **attributes)


@converts("adaptive_avg_pool2d")
def _adaptive_pool(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    target = pair(a["output_size"])
    if target == [1, 1]:
        return b.add("GlobalAveragePool", [a["self"]])
    size = [int(item) for item in _input_shape(node)[-2:]]
    if any(extent % out for extent, out in zip(size, target, strict=True)):
        raise UnsupportedError(
            f"adaptive_avg_pool2d from {size[0]}x{size[1]} to {target[0]}x{target[1]} has uneven windows, which ONNX "
            "cannot express; use an output size that divides the feature map"
        )
    kernel = [extent // out for extent, out in zip(size, target, strict=True)]
    return b.add("AveragePool", [a["self"]], kernel_shape=kernel, strides=kernel)


@converts("mean")
def _mean(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    return b.add("ReduceMean", [a["self"]], axes=a.get("dim") or None, keepdims=int(a.get("keepdim") or 0))


@converts("amax")
def _amax(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    return b.add("ReduceMax", [a["self"]], axes=a["dim"] or None, keepdims=int(a["keepdim"]))


@converts("sum")
def _sum(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    axes = [b.constant(a["dim"], np.int64)] if a.get("dim") else []
    return b.add("ReduceSum", [a["self"], *axes], keepdims=int(a.get("keepdim") or 0))


@converts("flatten")
def _flatten(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    dimensions = _input_rank(node)
    start, end = a["start_dim"] % dimensions, a["end_dim"] % dimensions
    if start == 1 and end == dimensions - 1:
        return b.add("Flatten", [a["self"]], axis=1)
    tail = [int(size) for size in _input_shape(node)[end + 1 :]]
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
    dimensions = _input_rank(node)
    return b.add("Transpose", [a["self"]], perm=[item % dimensions for item in a["dims"]])


@converts("transpose", "t")
def _transpose(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    order = list(range(_input_rank(node)))
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
    return b.add("Unsqueeze", [a["self"], b.constant([a["dim"] % (_input_rank(node) + 1)], np.int64)])


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
    axis = a["dim"] % _input_rank(node)
    extent = _input_shape(node)[axis]
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
    axis = a["dim"] % _input_rank(node)
    parts = _split_into(b, a["self"], [1] * int(_input_shape(node)[axis]), axis)
    return [b.add("Squeeze", [part, b.constant([axis], np.int64)]) for part in parts]


@converts("pad", "constant_pad_nd")
def _pad(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    widths = [int(item) for item in a["pad"]]
    dimensions = _input_rank(node)
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


@converts("pixel_shuffle")
def _pixel_shuffle(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    return b.add("DepthToSpace", [a["self"]], blocksize=int(a["upscale_factor"]), mode="CRD")


@converts("softmax")
def _softmax(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    return b.add("Softmax", [a["self"]], axis=a["dim"])


@converts("log_softmax")
def _log_softmax(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    return b.add("LogSoftmax", [a["self"]], axis=a["dim"])


@converts("layer_norm")
def _layer_norm(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    shape = [int(item) for item in a["normalized_shape"]]
    scale = a["weight"] or b.constant(np.ones(shape))
    inputs = [a["input"], scale] + ([a["bias"]] if a["bias"] else [])
    return b.add("LayerNormalization", inputs, axis=-len(shape), epsilon=float(a["eps"]))


@converts("group_norm")
def _group_norm(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    groups, channels, dimensions = int(a["num_groups"]), int(_input_shape(node)[1]), _input_rank(node)
    grouped = b.add("Reshape", [a["input"], b.constant([0, groups, -1], np.int64)])
    ones, zeros = b.constant(np.ones(groups)), b.constant(np.zeros(groups))
    normal = b.add("InstanceNormalization", [grouped, ones, zeros], epsilon=float(a["eps"]))
    x = b.add("Reshape", [normal, b.add("Shape", [a["input"]])])
    wide = b.constant([channels] + [1] * (dimensions - 2), np.int64)
    for operator_name, parameter in (("Mul", a["weight"]), ("Add", a["bias"])):
        if parameter:
            x = b.add(operator_name, [x, b.add("Reshape", [parameter, wide])])
    return x


@converts("batch_norm")
def _batch_norm(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    channels = int(_input_shape(node)[1])
    scale = a["weight"] or b.constant(np.ones(channels))
    shift = a["bias"] or b.constant(np.zeros(channels))
    statistics = [a["running_mean"], a["running_var"]]
    if None in statistics:
        raise UnsupportedError("BatchNorm without running statistics depends on the batch; train it with statistics")
    return b.add("BatchNormalization", [a["input"], scale, shift, *statistics], epsilon=float(a["eps"]))


@converts("matmul", "bmm", "mm")
def _matmul(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    return b.add("MatMul", [a["self"], a.get("other") or a["mat2"]])


@converts("scaled_dot_product_attention")
def _attention(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    if a["attn_mask"] is not None or a["is_causal"] or a["dropout_p"]:
        raise UnsupportedError("masked or causal attention is not supported; Quantinel audits image classifiers")
    scale = a["scale"] or 1.0 / math.sqrt(int(_input_shape(node)[-1]))
    order = list(range(_input_rank(node, 1)))
    order[-2:] = [order[-1], order[-2]]
    keys = b.add("Transpose", [a["key"]], perm=order)
    scores = b.add("MatMul", [b.add("Mul", [a["query"], b.constant(scale)]), keys])
    return b.add("MatMul", [b.add("Softmax", [scores], axis=-1), a["value"]])


@converts("sym_size")
def _sym_size(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    return b.add("Gather", [b.add("Shape", [a["self"]]), b.constant([a["dim"]], np.int64)], axis=0)


_SYMBOLIC = {operator.mul: "Mul", operator.add: "Add", operator.sub: "Sub", operator.floordiv: "Div"}


def convert(b: GraphBuilder, node: fx.Node, lookup: Callable[[Any], Any]) -> Any:
    """Convert one node.

    Args:
        b: the graph under construction.
        node: a call_function node.
        lookup: maps argument nodes to value names.

    Raises:
        UnsupportedError: no converter for this operator.
    """
    args, kwargs = lookup(node.args), lookup(node.kwargs)
    if node.target is operator.getitem:
        return args[0][args[1]]
    if node.target in _SYMBOLIC:
        sizes = [item if isinstance(item, str) else b.constant([item], np.int64) for item in args]
        return b.add(_SYMBOLIC[node.target], sizes)
    schema = getattr(node.target, "_schema", None)
    base = "" if schema is None else schema.name.removeprefix("aten::")
    if schema is None or base not in CONVERTERS:
        raise UnsupportedError(
            f"operator {node.target} (node {node.name}) cannot be written to ONNX; replace it by a supported one "
            "or keep this model in float"
        )
    arguments = {
        argument.name: argument.default_value if argument.has_default_value() else None for argument in schema.arguments
    }
    for argument, value in zip(schema.arguments, args, strict=False):
        arguments[argument.name] = value
    arguments.update(kwargs)
    return CONVERTERS[base](b, arguments, node)
