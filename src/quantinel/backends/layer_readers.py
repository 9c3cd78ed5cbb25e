"""Which operator of an emitted file reads which audited integers, found by following the graph.

A layer's integers lie in the initializer ``<layer>.weight_codes``, under exactly that name, and one operator reads
them: a second one executes the layer twice, or what the first one reads is there for show.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from quantinel.backends.onnx_bias import Readers, added_behind, readers_by_name
from quantinel.backends.onnx_rescaling import rescaling_scale

_FLOAT = ("Conv", "Gemm", "MatMul")
_INTEGER = ("ConvInteger", "MatMulInteger")


@dataclass(frozen=True)
class LayerReader:
    """Initializer names behind one Conv, Gemm, MatMul or integer product.

    Attributes:
        codes: the stored integers.
        scale: of the weight; None where the product is not rescaled as the writer does it.
        zero: zero point of the weight's storage; None where there is none.
        bias: integers, or floats that the operator or a sum behind it adds; None without.
        bias_scale: of an integer bias; None for a float one.
        bias_zero: zero point of an integer bias; None where there is none.
        own_bias: the bias is an input of the operator itself.
        transposed: inputs come first in the stored weight.
        readers: how many operators read the integers, as they are or dequantized.
    """

    codes: str
    scale: str | None
    zero: str | None
    bias: str | None
    bias_scale: str | None
    bias_zero: str | None
    own_bias: bool
    transposed: bool
    readers: int


def codes_name(layer: str) -> str:
    """Name of the initializer that holds a layer's integers."""
    return f"{layer}.weight_codes"


def layer_readers(model: onnx.ModelProto) -> dict[str, list[LayerReader]]:
    """Every operator with a quantized weight, by the name of the initializer that holds its integers."""
    producers = {output: node for node in model.graph.node for output in node.output}
    readers = readers_by_name(model.graph.node)
    tensors = {tensor.name for tensor in model.graph.initializer}
    found: dict[str, list[LayerReader]] = {}
    for node in model.graph.node:
        if node.op_type in _FLOAT and len(node.input) > 1:
            weight = producers.get(node.input[1])
            reader = None if weight is None else _dequantized(node, weight, producers, readers)
        elif node.op_type in _INTEGER and len(node.input) > 1 and node.input[1] in tensors:
            reader = _integer(node, producers, readers, tensors)
        else:
            reader = None
        if reader is not None:
            found.setdefault(reader.codes, []).append(reader)
    return found


def _dequantized(
    node: onnx.NodeProto, weight: onnx.NodeProto, producers: Mapping[str, onnx.NodeProto], readers: Readers
) -> LayerReader | None:
    """A float operator whose weight is dequantized; None where its second input is something else."""
    if weight.op_type != "DequantizeLinear" or weight.input[0] in producers:
        return None
    codes, scale, zero = _three(weight)
    own_bias = len(node.input) > 2 and bool(node.input[2])
    bias = node.input[2] if own_bias else added_behind(node, readers)
    bias_scale = bias_zero = None
    dequantize = None if bias is None else producers.get(bias)
    if dequantize is not None and dequantize.op_type == "DequantizeLinear":
        bias, bias_scale, bias_zero = _three(dequantize)
    count = len(readers[codes]) + len(readers[weight.output[0]]) - 1
    return LayerReader(codes, scale, zero, bias, bias_scale, bias_zero, own_bias, node.op_type == "MatMul", count)


def _integer(
    node: onnx.NodeProto, producers: Mapping[str, onnx.NodeProto], readers: Readers, tensors: set[str]
) -> LayerReader:
    codes = node.input[1]
    zero = node.input[3] if len(node.input) > 3 and node.input[3] else None
    scale = rescaling_scale(node, producers, readers, tensors)
    added = added_behind(node, readers)
    return LayerReader(
        codes, scale, zero, added, None, None, False, node.op_type == "MatMulInteger", len(readers[codes])
    )


def _three(dequantize: onnx.NodeProto) -> tuple[str, str, str | None]:
    """Integers, scale and zero point of a DequantizeLinear."""
    zero = dequantize.input[2] if len(dequantize.input) > 2 and dequantize.input[2] else None
    return dequantize.input[0], dequantize.input[1], zero
