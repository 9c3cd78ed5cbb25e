"""A quantized ONNX file without its rounding of activations: the function that its operators compute, in float.

The weights stay those of the file (codes times scale). QuantizeLinear becomes a division by its scale and
DequantizeLinear a product, each with the file's own numbers, so that a scale that is not undone still shows. What
remains differs from the float model with the file's weights by nothing but float arithmetic, whatever the grids are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from onnx import helper, numpy_helper

from quantinel.backends.onnx_bias import readers_by_name
from quantinel.backends.onnx_constants import Array
from quantinel.backends.onnx_dataflow import CONTROL, as_array, constants, stored_arrays
from quantinel.errors import NotAssessable

RUNTIME_DOMAIN = "com.microsoft"
_POINTWISE = {
    "QLinearSigmoid": "Sigmoid", "QLinearLeakyRelu": "LeakyRelu", "QLinearGlobalAveragePool": "GlobalAveragePool",
    "QLinearAveragePool": "AveragePool", "QLinearSoftmax": "Softmax",
}  # fmt: skip
_JOINS = {"QLinearAdd": "Add", "QLinearMul": "Mul"}
_INTEGER = ("ConvInteger", "MatMulInteger")
_READ_ZERO = ("DequantizeLinear", *_INTEGER)
_OWN_ATTRIBUTES = ("channels_last", "opset")


@dataclass(frozen=True)
class ActivationGrid:
    """Where the file rounds an activation.

    Attributes:
        value: name of the value that is rounded, before it is divided by the scale.
        scale, zero_point: of the grid.
        low, high: its ends, in the value's unit.
    """

    value: str
    scale: float
    zero_point: int
    low: float
    high: float


@dataclass(frozen=True)
class Unrounded:
    """The file in float.

    Attributes:
        model: to be run; its inputs and outputs are the file's.
        activations: how the file rounds them.
        grids: where, for static ones.
        levels: largest code of the coarsest grid.
        scaling: values that stand for codes, and what undoes them: what computes these is no arithmetic of the file.
    """

    model: onnx.ModelProto
    activations: Literal["static", "dynamic", "none"]
    grids: tuple[ActivationGrid, ...]
    levels: int
    scaling: frozenset[str]


def unrounded(model: onnx.ModelProto, rectified: float | None = None) -> Unrounded:
    """Rewrite a quantized file.

    Args:
        model: checked; it is not changed.
        rectified: None keeps values that a grid cannot hold. A number makes grids that begin at zero cut negative
            values off, and values above that number: quantizers leave ReLU and ReLU6 out where the grid does their
            work.

    Raises:
        NotAssessable: an operator or a grid that cannot be rewritten.
    """
    return _Rewriter(model, rectified).run()


class _Rewriter:
    def __init__(self, model: onnx.ModelProto, rectified: float | None) -> None:
        self.source, self.rectified = model, rectified
        self.constant = constants(model)
        self.tensors = dict(stored_arrays(model))
        self.producers = {name: node for node in model.graph.node for name in node.output}
        self.results = {item.name for item in model.graph.output}
        self.readers = readers_by_name(model.graph.node)
        self.nodes: list[onnx.NodeProto] = []
        self.added: list[onnx.TensorProto] = []
        self.grids: list[ActivationGrid] = []
        self.scaling: set[str] = set()
        self.dynamic = False
        self.levels = 255
        self.count = 0
        self.rules: dict[str, Callable[[onnx.NodeProto], None]] = {
            "QuantizeLinear": self._quantize, "DequantizeLinear": self._dequantize,
            "DynamicQuantizeLinear": self._dynamic, "QLinearConv": self._convolution, "QLinearMatMul": self._matmul,
            "QGemm": self._gemm, "QLinearConcat": self._concat, "ConvInteger": self._integer,
            "MatMulInteger": self._integer, "Min": self._minimum, **dict.fromkeys(_POINTWISE, self._pointwise),
            **dict.fromkeys(_JOINS, self._join),
        }  # fmt: skip

    def run(self) -> Unrounded:
        if self.source.functions:
            raise NotAssessable("the file defines operators of its own, which are not rewritten")
        for node in self.source.graph.node:
            rule = self.rules.get(node.op_type)
            if node.op_type in CONTROL:
                raise NotAssessable(f"{node.op_type} runs operators of its own, as often as it likes; it was not run")
            if rule is None and node.op_type.startswith(("QLinear", "QAttention", "QEmbed", "QGemm")):
                raise NotAssessable(f"{node.op_type} is a quantized operator that is not known here")
            if rule is None or all(name in self.constant for name in node.input if name):
                self.nodes.append(node)
                continue
            try:
                rule(node)
            except IndexError as error:
                raise NotAssessable(f"{node.op_type} lacks inputs") from error
        made = onnx.ModelProto()
        made.CopyFrom(self.source)
        del made.graph.node[:]
        del made.graph.value_info[:]
        made.graph.node.extend(self.nodes)
        made.graph.initializer.extend(self.added)
        kind: Literal["static", "dynamic", "none"]
        kind = "dynamic" if self.dynamic else "static" if self.grids else "none"
        return Unrounded(made, kind, tuple(self.grids), self.levels, frozenset(self.scaling))

    def _emit(self, operator: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> str:
        name = output or self._name()
        self.nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def _scale(self, operator: str, inputs: Sequence[str], output: str = "") -> str:
        """Arithmetic with the numbers of a grid."""
        name = self._emit(operator, inputs, output)
        self.scaling.add(name)
        return name

    def _like(self, node: onnx.NodeProto, operator: str, inputs: Sequence[str]) -> str:
        """A float operator with the attributes of a quantized one."""
        name = self._emit(operator, inputs)
        for item in node.attribute:
            if item.name == "channels_last" and item.i:
                raise NotAssessable(f"{node.op_type} has channels last, which is not rewritten")
            if item.name not in _OWN_ATTRIBUTES:
                self.nodes[-1].attribute.append(item)
        return name

    def _name(self) -> str:
        self.count += 1
        return f"unrounded_{self.count}"

    def _keep(self, value: Array | float, name: str = "") -> str:
        name = name or self._name()
        tensor = numpy_helper.from_array(np.ascontiguousarray(value, np.float32).reshape(np.shape(value)), name)
        self.added.append(tensor)
        self.tensors[name] = tensor
        return name

    def _array(self, name: str) -> Array:
        tensor = self.tensors.get(name)
        found = None if tensor is None else as_array(tensor)
        if found is None:
            raise NotAssessable(f"{name or 'an input'} is no stored number that can be read")
        return found

    def _parameters(self, scale: str, zero: str) -> tuple[float, Array]:
        """Scale and zero point of one activation."""
        step, code = self._array(scale), self._array(zero) if zero else np.zeros((), np.uint8)
        if step.size != 1 or code.size != 1:
            raise NotAssessable(f"an activation has a grid for every channel ({scale}), which is not rewritten")
        if not np.isfinite(step).all() or float(step.reshape(-1)[0]) <= 0:
            raise NotAssessable(f"the scale {scale} of an activation is not positive")
        return float(step.reshape(-1)[0]), code

    def _to_codes(self, value: str, scale: str, zero: str, output: str) -> str:
        """What QuantizeLinear does, without rounding."""
        step, code = self._parameters(scale, zero)
        if code.dtype.kind not in "iu":
            raise NotAssessable(f"an activation is rounded to {code.dtype}, which is not rewritten")
        limits, middle = np.iinfo(code.dtype), int(code.reshape(-1)[0])
        low, high = ((end - middle) * step for end in (limits.min, limits.max))
        if self.rectified is not None and middle == limits.min:
            value = self._emit("Relu", [value])
            if high <= self.rectified * 1.01:
                value = self._emit("Min", [value, self._keep(self.rectified)])
        self.grids.append(ActivationGrid(value, step, middle, low, high))
        quotient = self._scale("Div", [value, self._keep(step)])
        return self._scale("Add", [quotient, self._keep(middle)], output)

    def _to_values(self, codes: str, scale: str, zero: str, output: str = "") -> str:
        """What DequantizeLinear does."""
        if codes in self.constant:
            array, steps = self._array(codes).astype(np.float64), self._array(scale).astype(np.float64)
            zeros = self._array(zero).astype(np.float64) if zero else np.zeros(())
            if steps.size != 1 or zeros.size != 1:
                raise NotAssessable(f"{codes} has a grid for every channel, which is not rewritten")
            return self._keep((array - zeros.reshape(())) * steps.reshape(()), output)
        if scale in self.producers and scale not in self.tensors:  # measured at run time
            return self._scale("Mul", [self._scale("Sub", [codes, zero]), scale], output)
        step, code = self._parameters(scale, zero)
        centred = self._scale("Sub", [codes, self._keep(float(code.reshape(-1)[0]))])
        return self._scale("Mul", [centred, self._keep(step)], output)

    def _offset(self, zero: str) -> str:
        """The zero point of an integer product's input, in float."""
        if zero in self.producers and zero not in self.tensors:  # measured at run time
            return zero
        return self._keep(float(self._array(zero).reshape(-1)[0]) if zero else 0.0)

    def _weight(self, codes: str, scale: str, zero: str, axis: int) -> str:
        """A stored weight in float."""
        array = self._array(codes).astype(np.float64)
        shape = [-1 if index == axis % max(array.ndim, 1) else 1 for index in range(array.ndim)]
        steps, zeros = (self._array(name).astype(np.float64) for name in (scale, zero))
        wide = [item.reshape(shape if item.size > 1 else ()) for item in (steps, zeros)]
        return self._keep((array - wide[1]) * wide[0])

    def _quantize(self, node: onnx.NodeProto) -> None:
        self._to_codes(node.input[0], node.input[1], node.input[2] if len(node.input) > 2 else "", node.output[0])

    def _dequantize(self, node: onnx.NodeProto) -> None:
        self._to_values(node.input[0], node.input[1], node.input[2] if len(node.input) > 2 else "", node.output[0])

    def _dynamic(self, node: onnx.NodeProto) -> None:
        """Codes on a grid of scale 1, where the scale only undoes the division; with the measured scale otherwise."""
        self.dynamic = True
        codes, scale, zero = node.output
        undone = all(
            list(reader.input) == [codes, scale, zero]
            if reader.op_type == "DequantizeLinear"
            else self._rescales(reader, codes)
            for reader in self.readers.get(scale, [])
        )
        if undone and all(reader.op_type in _READ_ZERO for reader in self.readers.get(zero, [])):
            self._emit("Identity", [node.input[0]], codes)
            self._keep(1.0, scale)
            self._keep(0.0, zero)
            rescaled = (reader.output[0] for reader in self.readers.get(scale, []) if reader.op_type == "Mul")
            self.scaling |= {node.output[0] for name in rescaled for node in self.readers.get(name, [])}
            return
        measured = [self._name(), scale, self._name()]
        self.nodes.append(helper.make_node("DynamicQuantizeLinear", [node.input[0]], measured))
        self._emit("Cast", [measured[2]], zero, to=onnx.TensorProto.FLOAT)
        self._scale("Add", [self._scale("Div", [node.input[0], scale]), zero], codes)

    def _rescales(self, factors: onnx.NodeProto, codes: str) -> bool:
        """Whether a product of two scales is multiplied with the integer products of these codes alone."""
        if factors.op_type != "Mul" or sum(name in self.constant for name in factors.input) != 1:
            return False
        for reader in self.readers.get(factors.output[0], []):
            other = [name for name in reader.input if name != factors.output[0]]
            cast = self.producers.get(other[0]) if reader.op_type == "Mul" and len(other) == 1 else None
            product = self.producers.get(cast.input[0]) if cast is not None and cast.op_type == "Cast" else None
            if product is None or product.op_type not in _INTEGER or product.input[0] != codes:
                return False
        return factors.output[0] not in self.results

    def _minimum(self, node: onnx.NodeProto) -> None:
        """A grid of fewer bits in a wider type is cut off between two roundings: part of the rounding."""
        between = [name for name in node.input if name not in self.constant]
        producer = self.producers.get(between[0])
        readers = self.readers.get(node.output[0], [])
        rounded = producer is not None and producer.op_type == "DequantizeLinear" and len(between) == 1
        if not rounded or len(node.input) != 2 or [item.op_type for item in readers] != ["QuantizeLinear"]:
            self.nodes.append(node)
            return
        top = self._array(next(name for name in node.input if name in self.constant))
        step, zero = self._parameters(readers[0].input[1], readers[0].input[2] if len(readers[0].input) > 2 else "")
        if top.size != 1:
            raise NotAssessable("an activation is cut off at other values in every channel, which is not rewritten")
        self.levels = min(self.levels, max(1, round(float(top.reshape(-1)[0]) / step + int(zero.reshape(-1)[0]))))
        self._emit("Identity", between, node.output[0])

    def _convolution(self, node: onnx.NodeProto) -> None:
        x, xs, xz, w, ws, wz, ys, yz = node.input[:8]
        inputs = [self._to_values(x, xs, xz), self._weight(w, ws, wz, 0)]
        if len(node.input) > 8 and node.input[8]:
            inputs.append(self._keep(self._array(node.input[8]) * self._parameters(xs, xz)[0] * self._array(ws)))
        self._to_codes(self._like(node, "Conv", inputs), ys, yz, node.output[0])

    def _matmul(self, node: onnx.NodeProto) -> None:
        a, sa, za, b, sb, zb, ys, yz = node.input[:8]
        right = self._weight(b, sb, zb, -1) if b in self.constant else self._to_values(b, sb, zb)
        self._to_codes(self._emit("MatMul", [self._to_values(a, sa, za), right]), ys, yz, node.output[0])

    def _gemm(self, node: onnx.NodeProto) -> None:
        a, sa, za, b, sb, zb = node.input[:6]
        alpha = next((item.f for item in node.attribute if item.name == "alpha"), 1.0)
        if alpha != 1.0:
            raise NotAssessable("QGemm has a factor, which is not rewritten")
        transposed = any(item.name == "transB" and item.i for item in node.attribute)
        inputs = [self._to_values(a, sa, za), self._weight(b, sb, zb, 0 if transposed else -1)]
        if len(node.input) > 6 and node.input[6]:
            inputs.append(self._keep(self._array(node.input[6]) * self._parameters(sa, za)[0] * self._array(sb)))
        product = self._like(node, "Gemm", inputs)
        if len(node.input) > 8:
            self._to_codes(product, node.input[7], node.input[8], node.output[0])
        else:
            self._emit("Identity", [product], node.output[0])

    def _concat(self, node: onnx.NodeProto) -> None:
        parts = [self._to_values(*node.input[start : start + 3]) for start in range(2, len(node.input), 3)]
        self._to_codes(self._like(node, "Concat", parts), node.input[0], node.input[1], node.output[0])

    def _pointwise(self, node: onnx.NodeProto) -> None:
        value = self._like(node, _POINTWISE[node.op_type], [self._to_values(*node.input[:3])])
        self._to_codes(value, node.input[3], node.input[4], node.output[0])

    def _join(self, node: onnx.NodeProto) -> None:
        both = [self._to_values(*node.input[:3]), self._to_values(*node.input[3:6])]
        self._to_codes(self._emit(_JOINS[node.op_type], both), node.input[6], node.input[7], node.output[0])

    def _integer(self, node: onnx.NodeProto) -> None:
        """Codes times codes; the zero points are taken off as the operator does."""
        x, w = node.input[:2]
        zeros = [*node.input[2:4], "", ""][:2]
        weight = self._array(w).astype(np.float64)
        if zeros[1]:
            offset = self._array(zeros[1]).astype(np.float64)
            shape = [-1, *[1] * (weight.ndim - 1)] if node.op_type == "ConvInteger" else [-1]
            weight = weight - offset.reshape(shape if offset.size > 1 else ())
        centred = self._scale("Sub", [x, self._offset(zeros[0])])
        product = self._like(node, "Conv" if node.op_type == "ConvInteger" else "MatMul", [centred, self._keep(weight)])
        self._emit("Identity", [product], node.output[0])
