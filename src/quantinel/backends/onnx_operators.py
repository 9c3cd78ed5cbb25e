"""ATen operators of the traced graph to ONNX, one small function each.

`CONVERTERS` maps the overload packet's name to a function of (builder, arguments by schema name, node) that
returns the name of the result (or a list of names). Everything else is refused by name. The functions lie in
`onnx_elementwise`, `onnx_shapes`, `onnx_attention`, `onnx_tensors`, `onnx_statistics` and `onnx_sampling`, which
register them when they are imported.
"""

from __future__ import annotations

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
