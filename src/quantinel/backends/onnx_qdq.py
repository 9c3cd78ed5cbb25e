"""Own ONNX writer: the chosen codes in QuantizeLinear / DequantizeLinear form.

Layout (specification of the quantization stack, 2c): unsigned affine activations, signed weights per output
channel, int32 biases on the accumulator's grid. Every weight is stored as integers only; no float copy of a
quantized weight is in the file. Profiles:

* ``onnxruntime-x86``: int8 weights; the fast layout on x86 with VNNI and on Arm.
* ``onnxruntime-avx2``: the same integers stored as uint8 with zero point 128. On x86 without VNNI, U8S8 kernels
  saturate at 16 bits and large same-sign int8 weights give wrong sums; U8U8 kernels do not.
* ``openvino``: int8 weights, read by OpenVINO as they are. OpenVINO's CPU plugin drops the rounding of a
  convolution's output that it fuses with a residual addition; there QuantizeLinear and DequantizeLinear stand twice.
  The second pair changes nothing by the standard's arithmetic, and OpenVINO keeps its rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, fx

from quantinel.backends import (  # noqa: F401  they register converters
    onnx_attention,
    onnx_elementwise,
    onnx_sampling,
    onnx_shapes,
    onnx_statistics,
    onnx_tensors,
)
from quantinel.backends.onnx_builder import GraphBuilder
from quantinel.backends.onnx_operators import convert, pair, rank
from quantinel.errors import UsageError
from quantinel.model.graph import aten
from quantinel.quantization.placement import is_rectifier
from quantinel.quantization.quantized_model import QuantizedLayer, QuantizedModel

INPUT_NAME = "images"
OUTPUT_NAME = "logits"


@dataclass(frozen=True)
class Profile:
    """How integers are stored for one runtime.

    Attributes:
        name: as on the command line.
        summary: one line.
        unsigned_weights: store code + 128 as uint8 with zero point 128.
        repeated_addends: quantize a convolution's output twice where only an addition reads it.
    """

    name: str
    summary: str
    unsigned_weights: bool = False
    repeated_addends: bool = False


PROFILES: dict[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile("onnxruntime-x86", "ONNX Runtime on x86 with VNNI, and on Arm: uint8 activations, int8 weights"),
        Profile(
            "onnxruntime-avx2",
            "ONNX Runtime on x86 without VNNI: weights stored as uint8, no saturation",
            True,
        ),
        Profile(
            "openvino",
            "OpenVINO: uint8 activations, int8 weights, residual additions as its fusions need them",
            repeated_addends=True,
        ),
    )
}


def profile_named(name: str) -> Profile:
    """Look a profile up.

    Raises:
        UsageError: unknown name.
    """
    if name not in PROFILES:
        raise UsageError(f"unknown backend {name!r}; choose one of {', '.join(PROFILES)}")
    return PROFILES[name]


def to_onnx(model: QuantizedModel, profile: Profile, producer_version: str = "") -> onnx.ModelProto:
    """Write the graph with the model's integers.

    Args:
        model: graph, codes and activation parameters.
        profile: storage of the weights.
        producer_version: recorded in the file.

    Raises:
        UnsupportedError: an operator has no ONNX form here.
    """
    return _Writer(model, profile).write(producer_version)


class _Writer:
    def __init__(self, model: QuantizedModel, profile: Profile) -> None:
        self.model, self.profile = model, profile
        self.builder = GraphBuilder()
        self.values: dict[fx.Node, Any] = {}
        self.dynamic: dict[fx.Node, tuple[str, str, str]] = {}
        self.by_node = {layer.layer.node: layer for layer in model.layers.values()}
        self.points = set(model.placement.points)

    def write(self, producer_version: str) -> onnx.ModelProto:
        b = self.builder
        output = ""
        for node in self.model.graph.module.graph.nodes:
            if node.op == "placeholder":
                self.values[node] = INPUT_NAME
            elif node.op == "get_attr":
                continue  # stored when something other than a quantized layer reads it
            elif node.op == "output":
                output = b.add("Identity", [self._lookup(node.args[0])], OUTPUT_NAME)
                continue
            elif node.name in self.by_node:
                self.values[node] = self._layer(node, self.by_node[node.name])
            else:
                self.values[node] = convert(b, node, self._lookup)
            if node.name in self.points:
                self.values[node] = self._quantize(node)
        graph = self.model.graph
        return b.model(
            "quantinel",
            INPUT_NAME,
            graph.input_shape,
            output or OUTPUT_NAME,
            graph.num_classes,
            producer_version,
        )

    def _lookup(self, argument: Any) -> Any:
        def one(node: fx.Node) -> Any:
            if node.op == "get_attr":
                tensor = self.model.graph.module.get_buffer(str(node.target))
                dtype = np.float32 if tensor.is_floating_point() else np.int64
                stored = np.bool_ if tensor.dtype is torch.bool else dtype
                return self.builder.constant(tensor.numpy(), stored, str(node.target))
            return self.values[node]

        return fx.node.map_arg(argument, one)

    def _quantize(self, node: fx.Node) -> str:
        """Q and DQ behind ``node``; readers see the dequantized value."""
        b, value = self.builder, self.values[node]
        if self.model.scheme.activations == "dynamic":
            quantized, scale, zero = b.add_many("DynamicQuantizeLinear", [value], 3, f"{node.name}.dynamic")
            self.dynamic[node] = (quantized, scale, zero)
            return b.add("DequantizeLinear", [quantized, scale, zero], f"{node.name}.dequantized")
        parameters = self.model.activations[node.name]
        scale = b.constant(parameters.scale, np.float32, f"{node.name}.scale")
        zero = b.constant(parameters.zero_point, np.uint8, f"{node.name}.zero_point")
        if self.model.scheme.activation_bits == 8 and self.profile.repeated_addends and self._is_addend(node):
            first = b.add("QuantizeLinear", [value, scale, zero], f"{node.name}.first")
            value = b.add("DequantizeLinear", [first, scale, zero])
        if self.model.scheme.activation_bits < 8:
            # The grid ends at 2^bits - 1, the uint8 container at 255: round first, so that the layer before still
            # ends in a QuantizeLinear and runs in integers, then cut off and round again (which changes nothing).
            top = (self.model.scheme.activation_max - parameters.zero_point) * parameters.scale
            wide = b.add("QuantizeLinear", [value, scale, zero], f"{node.name}.wide")
            value = b.add("Min", [b.add("DequantizeLinear", [wide, scale, zero]), b.constant(top)])
        quantized = b.add("QuantizeLinear", [value, scale, zero], f"{node.name}.quantized")
        return b.add("DequantizeLinear", [quantized, scale, zero], f"{node.name}.dequantized")

    def _is_addend(self, node: fx.Node) -> bool:
        """A convolution's output, before or after its ReLU, that only an addition reads."""
        source = node.args[0] if is_rectifier(node) else node
        layer = self.by_node.get(source.name) if isinstance(source, fx.Node) else None
        readers = list(node.users)
        return (
            layer is not None
            and layer.layer.kind == "conv"
            and len(readers) == 1
            and readers[0].target is aten.add.Tensor
        )

    def _layer(self, node: fx.Node, layer: QuantizedLayer) -> str:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        if source in self.dynamic:
            return self._dynamic_layer(node, layer, source)
        x = self.values[source]
        if layer.layer.kind == "conv":
            weight = self._weight(layer, layer.codes, 0)
            bias = self._bias(layer)
            return self.builder.add("Conv", [x, weight, *bias], node.name, **_conv_attributes(node, layer.codes))
        if rank(source) == 2:
            return self._gemm(x, layer, node.name)
        if self.model.scheme.activations == "none":
            return self._float_tokens(node, layer, x)
        product = self.builder.add("MatMul", [x, self._weight(layer, layer.codes.t(), 1)], f"{node.name}.product")
        return self._add_bias(node, layer, product, [-1])

    def _gemm(self, x: str, layer: QuantizedLayer, output: str | None = None) -> str:
        """A linear layer on one row for each image or token."""
        weight = self._weight(layer, layer.codes, 0)
        return self.builder.add("Gemm", [x, weight, *self._bias(layer)], output, transB=1)

    def _float_tokens(self, node: fx.Node, layer: QuantizedLayer, x: str) -> str:
        """A linear layer on tokens whose activations stay float: a Gemm on one row for each token.

        ONNX Runtime 1.32 makes MatMulNBits of a MatMul with a dequantized weight, which rounds activations to 8 bits in
        blocks. A Gemm stays as it is.
        """
        b, shape = self.builder, [size if isinstance(size, int) else -1 for size in node.meta["val"].shape]
        rows = b.add("Reshape", [x, b.constant([-1, layer.codes.shape[1]], np.int64)])
        return b.add("Reshape", [self._gemm(rows, layer), b.constant(shape, np.int64)], node.name)

    def _add_bias(self, node: fx.Node, layer: QuantizedLayer, value: str, shape: list[int]) -> str:
        bias = self.model.bias(layer)
        if bias is None:
            return self.builder.add("Identity", [value], node.name)
        stored = self.builder.constant(bias.reshape(shape).numpy(), np.float32, f"{layer.layer.name}.bias")
        return self.builder.add("Add", [value, stored], node.name)

    def _codes(self, layer: QuantizedLayer, codes: Tensor) -> tuple[str, Any]:
        """Store the integers; returns their name and the zero point of the storage."""
        name = f"{layer.layer.name}.weight_codes"
        if self.profile.unsigned_weights:
            return self.builder.constant(codes.numpy().astype(np.int16) + 128, np.uint8, name), np.uint8(128)
        return self.builder.constant(codes.numpy(), np.int8, name), np.int8(0)

    def _weight(self, layer: QuantizedLayer, codes: Tensor, axis: int) -> str:
        """Initializer and DequantizeLinear of a weight; the name of the dequantized value."""
        b, name = self.builder, layer.layer.name
        stored, zero = self._codes(layer, codes)
        per_channel = layer.scale.numel() > 1
        scale = layer.scale.numpy() if per_channel else layer.scale.numpy().reshape(())
        zeros = np.full(scale.shape, zero)
        inputs = [
            stored,
            b.constant(scale, np.float32, f"{name}.weight_scale"),
            b.constant(zeros, zeros.dtype, f"{name}.weight_zero_point"),
        ]
        return b.add("DequantizeLinear", inputs, f"{name}.weight", axis=axis if per_channel else None)

    def _bias(self, layer: QuantizedLayer) -> list[str]:
        """int32 bias with its DequantizeLinear, a float bias, or nothing."""
        b, name = self.builder, layer.layer.name
        if layer.bias_codes is None or layer.bias_scale is None:
            bias = self.model.bias(layer)
            return [] if bias is None else [b.constant(bias.numpy(), np.float32, f"{name}.bias")]
        inputs = [
            b.constant(layer.bias_codes.numpy(), np.int32, f"{name}.bias_codes"),
            b.constant(layer.bias_scale.numpy(), np.float32, f"{name}.bias_scale"),
            b.constant(np.zeros(layer.bias_scale.shape), np.int32, f"{name}.bias_zero_point"),
        ]
        return [b.add("DequantizeLinear", inputs, f"{name}.bias", axis=0)]

    def _dynamic_layer(self, node: fx.Node, layer: QuantizedLayer, source: fx.Node) -> str:
        """Integer product of a tensor quantized at run time, rescaled to float."""
        b, (quantized, scale, zero) = self.builder, self.dynamic[source]
        name = layer.layer.name
        convolution = layer.layer.kind == "conv"
        stored, weight_zero = self._codes(layer, layer.codes if convolution else layer.codes.t())
        weight_zero_name = b.constant(weight_zero, weight_zero.dtype, f"{name}.weight_zero_point")
        inputs = [quantized, stored, zero, weight_zero_name]
        if convolution:
            product = b.add("ConvInteger", inputs, f"{node.name}.product", **_conv_attributes(node, layer.codes))
            shape = [1, -1] + [1] * (layer.codes.ndim - 2)
        else:
            product = b.add("MatMulInteger", inputs, f"{node.name}.product")
            shape = [-1]
        weight_scale = b.constant(
            layer.scale.reshape(shape if layer.scale.numel() > 1 else []).numpy(),
            np.float32,
            f"{name}.weight_scale",
        )
        accumulated = b.add("Cast", [product], f"{node.name}.accumulated", to=onnx.TensorProto.FLOAT)
        rescaled = b.add("Mul", [accumulated, b.add("Mul", [scale, weight_scale])], f"{node.name}.rescaled")
        return self._add_bias(node, layer, rescaled, shape)


def _conv_attributes(node: fx.Node, codes: Tensor) -> dict[str, Any]:
    """Attributes of ONNX Conv from an ATen convolution."""
    args = [*node.args, *([None] * 7)]
    dimensions = codes.ndim - 2

    def extent(value: Any, default: int) -> list[int]:
        return [default] * dimensions if value is None else pair(value)[-dimensions:]

    stride, dilation = extent(args[3], 1), extent(args[5], 1)
    groups = args[6] if isinstance(args[6], int) else 1
    kernel = [int(size) for size in codes.shape[2:]]
    if node.target in (aten.conv2d.padding, aten.conv1d.padding):
        total = [(size - 1) * step if args[4] == "same" else 0 for size, step in zip(kernel, dilation, strict=True)]
        pads = [item // 2 for item in total] + [item - item // 2 for item in total]
    else:
        pads = extent(args[4], 0) * 2
    return {"kernel_shape": kernel, "strides": stride, "dilations": dilation, "pads": pads, "group": groups}
