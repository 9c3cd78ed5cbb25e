"""Biases that are no input of their operator: what is added to a product behind it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import onnx

_RESCALING = {"MatMulInteger": ("Cast", "Mul"), "ConvInteger": ("Cast", "Mul")}
_ROUNDING = ("QuantizeLinear", "DequantizeLinear")
"""Between a product and the sum: integers become floats, or floats are rounded; anything else ends the search."""

Readers = Mapping[str, Sequence[onnx.NodeProto]]
"""The nodes that read a tensor, by its name."""


def readers_by_name(nodes: Iterable[onnx.NodeProto]) -> dict[str, list[onnx.NodeProto]]:
    """The nodes that read every tensor."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return readers


def added_behind(node: onnx.NodeProto, readers: Readers) -> str | None:
    """Name of the tensor that is added to an operator's result; None if nothing is.

    Args:
        node: of a product.
        readers: see `readers_by_name`.
    """
    result, passed = node.output[0], _RESCALING.get(node.op_type, _ROUNDING)
    while len(following := readers.get(result, ())) == 1:
        (reader,) = following
        if reader.op_type == "Add":
            return next((name for name in reader.input if name != result), None)
        if reader.op_type not in passed:
            break
        result = reader.output[0]
    return None
