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


def input_rank(node: fx.Node, position: int = 0) -> int:
    """Dimensions of an argument of ``node``."""
    source = node.args[position]
    assert isinstance(source, fx.Node)
    return rank(source)


def input_shape(node: fx.Node, position: int = 0) -> list[Any]:
    """Shape of an argument of ``node``; a free batch size is symbolic."""
    source = node.args[position]
    assert isinstance(source, fx.Node)
    return list(source.meta["val"].shape)


def operand(b: GraphBuilder, value: Any) -> str:
    """A tensor's name, or a constant for a plain number."""
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
    "floor": "Floor", "ceil": "Ceil", "sin": "Sin", "cos": "Cos", "selu": "Selu", "sign": "Sign",
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
        raise UnsupportedError("operator aten.elu with a scale is not supported; use ELU, SELU, CELU or ReLU")
    return b.add("Elu", [a["self"]], alpha=float(a["alpha"]))


@converts("celu")
def _celu(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    return b.add("Celu", [a["self"]], alpha=float(a["alpha"]))


@converts("softplus")
def _softplus(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    """log(1 + exp(beta x)) / beta; torch's threshold only avoids an overflow that ONNX Runtime does not have."""
    beta = float(a["beta"])
    if beta == 1:
        return b.add("Softplus", [a["self"]])
    return b.add("Div", [b.add("Softplus", [b.add("Mul", [a["self"], b.constant(beta)])]), b.constant(beta)])


@converts("log_sigmoid")
def _log_sigmoid(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    return b.add("Neg", [b.add("Softplus", [b.add("Neg", [a["self"]])])])


@converts("square")
def _square(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    return b.add("Mul", [a["self"], a["self"]])


@converts("prelu", "_prelu_kernel")
def _prelu(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    slope = b.add("Reshape", [a["weight"], b.constant([-1] + [1] * (input_rank(node) - 2), np.int64)])
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
    return b.add("Pow", [operand(b, a["self"]), operand(b, a["exponent"])])


def _arithmetic(name: str) -> Converter:
    def convert(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
        other = operand(b, a["other"])
        if a.get("alpha", 1) != 1:
            other = b.add("Mul", [other, b.constant(float(a["alpha"]))])
        if a.get("rounding_mode") is not None:
            raise UnsupportedError(f"operator {node.target} with rounding_mode is not supported; use plain division")
        return b.add(name, [operand(b, a["self"]), other])

    return convert


CONVERTERS.update({name: _arithmetic(name.capitalize()) for name in ("add", "sub", "mul", "div")})


@converts("rsub")
def _rsub(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    return b.add("Sub", [operand(b, a["other"]), a["self"]])


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


@converts("softmax")
def _softmax(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    return b.add("Softmax", [a["self"]], axis=a["dim"])


@converts("log_softmax")
def _log_softmax(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    return b.add("LogSoftmax", [a["self"]], axis=a["dim"])


@converts("matmul", "bmm", "mm")
def _matmul(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    return b.add("MatMul", [a["self"], a.get("other") or a["mat2"]])


@converts("scaled_dot_product_attention")
def _attention(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    if a["attn_mask"] is not None or a["is_causal"] or a["dropout_p"]:
        raise UnsupportedError("masked or causal attention is not supported; Quantinel audits image classifiers")
    scale = a["scale"] or 1.0 / math.sqrt(int(input_shape(node)[-1]))
    order = list(range(input_rank(node, 1)))
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
