"""Converters of activations and arithmetic, value by value; see `onnx_operators`."""

from __future__ import annotations

import math

import numpy as np
from torch import fx

from quantinel.backends.onnx_builder import GraphBuilder
from quantinel.backends.onnx_operators import CONVERTERS, Arguments, Converter, converts, input_rank, operand
from quantinel.errors import UnsupportedError

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
