"""The layers of a quantized ONNX file, whoever wrote it: integers, grids and biases as its operators read them.

Understood: QDQ (weights behind DequantizeLinear, also as float weights behind QuantizeLinear and DequantizeLinear),
QOperator (QLinearConv, QLinearMatMul, QGemm) and dynamic quantization (ConvInteger, MatMulInteger), per tensor and per
channel, signed and unsigned, as ONNX Runtime's quantizers and this project write them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from quantinel.backends.onnx_bias import added_behind, readers_by_name
from quantinel.backends.onnx_constants import Array
from quantinel.backends.onnx_rescaling import rescaling_scale

WEIGHTED = {
    "Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1, "QLinearConv": 3, "QLinearMatMul": 3, "QGemm": 3,
    "ConvInteger": 1, "MatMulInteger": 1,
}  # fmt: skip
"""Operators that multiply with a weight, and which input that is."""
_PASS = ("Identity", "Cast")
_SPAN = {"int8": 255.0, "uint8": 255.0, "int16": 65535.0, "uint16": 65535.0, "int4": 15.0, "uint4": 15.0,
         "int32": 2.0**32 - 1}  # fmt: skip
"""Highest minus lowest code; int32 is for biases only."""
_WIDEST_WEIGHT = 65535.0


@dataclass(frozen=True)
class ShippedLayer:
    """One operator of the file that multiplies with stored numbers.

    Attributes:
        name: of the stored weight (or of the operator, where nothing is stored).
        operator: its type.
        problem: why its integers cannot be read; empty where they can.
        codes: (O, ...) integers as int32, output channels first; None for a float weight or a problem.
        weight: (O, ...) float64, what the operator multiplies with; None with a problem.
        scale, zero_point: (O,) or (1,); None without codes.
        span: highest minus lowest code of the storage type.
        bias: (O,) float64, or None.
        bias_step: (O,) or (1,), of the bias's own grid; None where it is stored in float.
    """

    name: str
    operator: str
    problem: str = ""
    codes: Array | None = None
    weight: Array | None = None
    scale: Array | None = None
    zero_point: Array | None = None
    span: float = 0.0
    bias: Array | None = None
    bias_step: Array | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight; empty with a problem."""
        return () if self.weight is None else self.weight.shape


def shipped_layers(model: onnx.ModelProto) -> tuple[ShippedLayer, ...]:
    """All layers in the file's order; products of two computed tensors (attention) are none.

    Args:
        model: checked, see `quantinel.backends.verification.load_onnx`.
    """
    return tuple(_Reader(model).layers())


class _Unreadable(Exception):  # noqa: N818 (it becomes a layer's problem)
    """Why a weight cannot be read."""


@dataclass(frozen=True)
class _Stored:
    """A weight as it was stored, before any transposition."""

    name: str
    codes: Array | None
    value: Array
    scale: Array | None = None
    zero_point: Array | None = None
    axis: int = 0
    span: float = 0.0


class _Reader:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes = model.graph.node
        self.tensors: Mapping[str, onnx.TensorProto] = {tensor.name: tensor for tensor in model.graph.initializer}
        self.producers = {output: node for node in self.nodes for output in node.output}
        self.consumers = readers_by_name(self.nodes)

    def layers(self) -> Iterator[ShippedLayer]:
        for node in self.nodes:
            position = WEIGHTED.get(node.op_type)
            if position is None or len(node.input) <= position:
                continue
            name = node.input[position]
            try:
                stored = self._stored(node, name)
                if stored is not None:
                    yield self._layer(node, stored)
            except _Unreadable as error:
                yield ShippedLayer(node.name or name, node.op_type, problem=str(error))

    def array(self, name: str) -> Array:
        """A stored tensor."""
        tensor = self.tensors.get(name)
        if tensor is None:
            raise _Unreadable(f"{name or 'an input'} is computed, not stored")
        try:
            return numpy_helper.to_array(tensor)
        except Exception as error:  # it raises whatever the bytes make it raise
            raise _Unreadable(f"{name} cannot be read") from error

    def _stored(self, node: onnx.NodeProto, name: str) -> _Stored | None:
        """The weight of an operator; None where it is no stored weight at all."""
        if node.op_type in ("QLinearConv", "QLinearMatMul", "QGemm"):
            return self._quantized(name, node.input[4], node.input[5], _output_axis(node))
        if node.op_type in ("ConvInteger", "MatMulInteger"):
            if name not in self.tensors:
                return None
            zero = node.input[3] if len(node.input) > 3 else ""
            return self._quantized(name, self._dynamic_scale(node), zero, _output_axis(node))
        return self._behind(name)

    def _behind(self, name: str) -> _Stored | None:
        """Follow an input back to the tensor that it comes from."""
        for _ in range(8):
            if name in self.tensors:
                return _Stored(name, None, self.array(name))
            node = self.producers.get(name)
            if node is None or not node.input:
                return None
            if node.op_type == "DequantizeLinear":
                return self._dequantized(node)
            if node.op_type == "Transpose":
                stored = self._behind(node.input[0])
                return None if stored is None else _transposed(stored, _attribute(node, "perm"))
            if node.op_type not in _PASS:
                return None
            name = node.input[0]
        return None

    def _dequantized(self, node: onnx.NodeProto) -> _Stored | None:
        codes, scale = node.input[0], node.input[1]
        zero = node.input[2] if len(node.input) > 2 else ""
        axis = _attribute(node, "axis")
        axis = 1 if axis is None else int(axis)
        if int(_attribute(node, "block_size") or 0):
            raise _Unreadable("its grid has blocks, which are not compared yet")
        if codes in self.tensors:
            return self._quantized(codes, scale, zero, axis)
        quantizer = self.producers.get(codes)
        if quantizer is None or quantizer.op_type != "QuantizeLinear":
            return None
        source = self._behind(quantizer.input[0])
        if source is None:
            return None  # an activation
        steps, zeros = self.array(scale), self.array(zero) if zero else np.zeros((), np.uint8)
        limits = np.iinfo(zeros.dtype) if zeros.dtype.kind in "iu" else None
        if limits is None:
            raise _Unreadable("its weight is quantized to a type that is not known here")
        wide = [_along(item, source.value.ndim, axis) for item in (steps.astype(np.float64), zeros.astype(np.int32))]
        rounded = np.rint(source.value.astype(np.float64) / wide[0]) + wide[1]
        rounded = np.clip(rounded, limits.min, limits.max).astype(zeros.dtype)
        return self._grid(source.name, rounded, steps, zeros, axis)

    def _quantized(self, codes: str, scale: str, zero: str, axis: int) -> _Stored:
        values = self.array(codes)
        zeros = self.array(zero) if zero else np.zeros((), values.dtype)
        return self._grid(codes, values, self.array(scale), zeros, axis)

    def _grid(self, name: str, codes: Array, scale: Array, zero: Array, axis: int) -> _Stored:
        span = _SPAN.get(codes.dtype.name)
        if span is None:
            raise _Unreadable(f"{name} is {codes.dtype}, which is no weight type that is known here")
        if codes.ndim < 1 or any(item.ndim and max(item.shape) != item.size for item in (scale, zero)):
            raise _Unreadable(f"the grid of {name} has a shape that is not known here")
        axis %= codes.ndim
        sizes = {scale.size, zero.size} - {1}
        if scale.size == 0 or zero.size == 0 or (sizes and sizes != {codes.shape[axis]}):
            raise _Unreadable(f"the grid of {name} does not fit its weight")
        integers = codes.astype(np.int32)
        steps = scale.astype(np.float64).reshape(-1)
        if not (np.isfinite(steps).all() and (steps > 0).all()):
            raise _Unreadable(f"the scales of {name} are not positive")
        zeros = zero.astype(np.int32).reshape(-1)
        value = (integers - _along(zeros, codes.ndim, axis)) * _along(steps, codes.ndim, axis)
        return _Stored(name, integers, value, steps, zeros, axis, span)

    def _dynamic_scale(self, node: onnx.NodeProto) -> str:
        scale = rescaling_scale(node, self.producers, self.consumers, self.tensors)
        if scale is None:
            raise _Unreadable("the scale of its integer product was not found")
        return scale

    def _layer(self, node: onnx.NodeProto, stored: _Stored) -> ShippedLayer:
        """Output channels first."""
        matrix = "Conv" not in node.op_type
        if matrix and stored.value.ndim != 2:
            raise _Unreadable(f"{stored.name} has {stored.value.ndim} dimensions")
        if node.op_type == "ConvTranspose":
            raise _Unreadable("transposed convolutions are not quantized layers of the float model")
        if matrix and not (node.op_type in ("Gemm", "QGemm") and int(_attribute(node, "transB") or 0)):
            stored = _transposed(stored, [1, 0])
        if stored.span > _WIDEST_WEIGHT:
            raise _Unreadable(f"{stored.name} is stored in more than 16 bits")
        if stored.scale is not None and stored.scale.size > 1 and stored.axis != 0:
            raise _Unreadable("its scales do not belong to output channels")
        return ShippedLayer(
            stored.name, node.op_type, "", stored.codes, stored.value.astype(np.float64), stored.scale,
            stored.zero_point, stored.span, *self._bias(node, stored),
        )  # fmt: skip

    def _bias(self, node: onnx.NodeProto, stored: _Stored) -> tuple[Array | None, Array | None]:
        """The bias in float and its grid's step; also one that is added behind a product. None where none is stored."""
        position = {"QLinearConv": 8, "QGemm": 6}.get(node.op_type)
        if position is not None and len(node.input) > position and node.input[position] and stored.scale is not None:
            step = float(self.array(node.input[1]).reshape(-1)[0]) * stored.scale
            codes = self.array(node.input[position]).reshape(-1)
            return (codes * step, step) if codes.size == stored.value.shape[0] else (None, None)
        if node.op_type in ("Conv", "Gemm") and len(node.input) > 2 and node.input[2]:
            added: str | None = node.input[2]
        else:
            added = added_behind(node, self.consumers)
        reshaped = self.producers.get(added or "")
        if reshaped is not None and reshaped.op_type == "Reshape":  # to stand beside the channels of an image
            added = reshaped.input[0]
        behind = None if added is None else self._behind(added)
        if behind is None or behind.value.size != stored.value.shape[0]:
            return None, None
        return behind.value.reshape(-1), behind.scale


def _output_axis(node: onnx.NodeProto) -> int:
    """Where the output channels of a stored integer weight are."""
    if "Conv" in node.op_type or (node.op_type == "QGemm" and int(_attribute(node, "transB") or 0)):
        return 0
    return -1


def _along(values: Array, dimensions: int, axis: int) -> Array:
    """One value, or one for each index of an axis, so that it broadcasts."""
    return values.reshape([-1 if index == axis % dimensions and values.size > 1 else 1 for index in range(dimensions)])


def _transposed(stored: _Stored, order: Any) -> _Stored:
    axes = list(order) if order is not None else list(range(stored.value.ndim))[::-1]
    if sorted(axes) != list(range(stored.value.ndim)):
        raise _Unreadable(f"{stored.name} is transposed in an impossible order")
    codes = None if stored.codes is None else stored.codes.transpose(axes)
    axis = axes.index(stored.axis % stored.value.ndim)
    return _Stored(stored.name, codes, stored.value.transpose(axes), stored.scale, stored.zero_point, axis, stored.span)


def _attribute(node: onnx.NodeProto, name: str) -> Any:
    found = next((item for item in node.attribute if item.name == name), None)
    return None if found is None else onnx.helper.get_attribute_value(found)
