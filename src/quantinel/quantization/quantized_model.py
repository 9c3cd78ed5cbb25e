"""The quantized network: a folded float graph plus the integers that replace its weights.

``codes`` is the single source of truth: the simulation, the audit and every emitted file read it, and nothing
computes integers anywhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from quantinel.errors import InputError
from quantinel.model.graph import FloatGraph, Layer
from quantinel.quantization.calibration import ActivationParameters, Calibration
from quantinel.quantization.fake_quantize import dynamic_fake_quantize, fake_quantize
from quantinel.quantization.placement import Placement
from quantinel.quantization.ranges import weight_scales
from quantinel.quantization.rounding import dequantize, nearest_codes
from quantinel.quantization.scheme import QuantScheme

_INT32 = 2**31 - 1


@dataclass(frozen=True)
class QuantizedLayer:
    """The integers of one layer.

    Attributes:
        layer: the float layer.
        codes: int8, the weight's shape.
        scale: float32, (O,) or (1,).
        bias_codes: int32 (O,) on the grid input scale * weight scale; None without bias or without a static
            input scale.
        bias_scale: float32 (O,) or (1,); None with ``bias_codes``.
        float_bias: float32 (O,), the bias where it stays float and was corrected or stored; None where it is that of
            the float layer.
    """

    layer: Layer
    codes: Tensor
    scale: Tensor
    bias_codes: Tensor | None = None
    bias_scale: Tensor | None = None
    float_bias: Tensor | None = None

    def weight(self) -> Tensor:
        """Dequantized weight, float32."""
        return dequantize(self.codes, self.scale)

    def bias(self) -> Tensor | None:
        """Dequantized or corrected bias, float32; None where it is that of the float layer, or absent."""
        if self.bias_codes is None or self.bias_scale is None:
            return None if self.float_bias is None else self.float_bias.clone()
        return (self.bias_codes.double() * self.bias_scale.double()).float()


@dataclass(frozen=True)
class QuantizedModel:
    """Integers and activation parameters for a folded float graph.

    Attributes:
        graph: the folded float network.
        scheme: the grid.
        placement: quantization points.
        activations: parameters by point; empty for dynamic and weight-only schemes.
        layers: by layer name, in execution order.
        output_step: unit of logit differences (one 255th of the calibrated logit range).
    """

    graph: FloatGraph
    scheme: QuantScheme
    placement: Placement
    activations: Mapping[str, ActivationParameters]
    layers: Mapping[str, QuantizedLayer]
    output_step: float

    @property
    def codes(self) -> dict[str, Tensor]:
        """int8 codes by layer name."""
        return {name: layer.codes for name, layer in self.layers.items()}

    def bias(self, layer: QuantizedLayer) -> Tensor | None:
        """The bias that a layer adds, float32 (O,): its own, or the float layer's; None where there is none."""
        own = layer.bias()
        return self.graph.bias(layer.layer) if own is None else own

    def with_codes(self, codes: Mapping[str, Tensor]) -> QuantizedModel:
        """The same grids with other integers.

        Raises:
            InputError: a layer is missing, or codes have the wrong shape, type or range.
        """
        layers = {}
        for name, layer in self.layers.items():
            chosen = codes.get(name)
            if chosen is None or chosen.shape != layer.codes.shape or chosen.dtype != torch.int8:
                raise InputError(f"layer {name}: codes must be int8 of shape {tuple(layer.codes.shape)}")
            if int(chosen.min()) < self.scheme.code_min or int(chosen.max()) > self.scheme.code_max:
                raise InputError(
                    f"layer {name}: codes leave [{self.scheme.code_min}, {self.scheme.code_max}] of {self.scheme.name}"
                )
            layers[name] = replace(layer, codes=chosen.contiguous())
        return replace(self, layers=layers)

    def with_layers(self, layers: Mapping[str, QuantizedLayer]) -> QuantizedModel:
        """Other integers for some layers, biases included; they must be on the same grids."""
        return replace(self, layers={name: layers.get(name, layer) for name, layer in self.layers.items()})

    def simulate(self) -> fx.GraphModule:
        """A torch module with the arithmetic of the deployed file, in float.

        Weights and biases are dequantized integers; activations pass fake quantization with straight-through
        gradients, so the module is differentiable in its input. Takes (N, C, H, W), returns (N, K).
        """
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        output = graph.graph_copy(self.graph.module.graph, copies)
        graph.output(output)
        module = fx.GraphModule(self.graph.module, graph)
        by_name = {original.name: copied for original, copied in copies.items()}
        for name, layer in self.layers.items():
            node = by_name[layer.layer.node]
            self._use(module, node, 1, f"dequantized_{node.name}", layer.weight())
            bias = layer.bias()
            if bias is not None:
                self._use(module, node, 2, f"dequantized_{node.name}_bias", bias)
            assert name == layer.layer.name
        for point in self.placement.points:
            insert_after(graph, by_name[point], *self.activation_quantizer(point))
        for node in reversed(list(graph.nodes)):
            if node.op == "get_attr" and not node.users:
                graph.erase_node(node)
        graph.lint()
        module.recompile()
        return module.eval()

    def activation_quantizer(self, point: str) -> tuple[Callable[..., Tensor], tuple[Any, ...]]:
        """What quantizes the activation at ``point``: a function and the arguments that follow the tensor."""
        levels = self.scheme.activation_max
        if self.scheme.activations == "dynamic":
            return dynamic_fake_quantize, (levels,)
        parameters = self.activations[point]
        return fake_quantize, (parameters.scale, parameters.zero_point, levels)

    @staticmethod
    def _use(module: fx.GraphModule, node: fx.Node, position: int, name: str, value: Tensor) -> None:
        module.register_buffer(name, value)
        with node.graph.inserting_before(node):
            stored = node.graph.get_attr(name)
        args = list(node.args) + [None] * (position + 1 - len(node.args))
        args[position] = stored
        node.args = tuple(args)


def insert_after(graph: fx.Graph, node: fx.Node, function: Any, args: tuple[Any, ...]) -> fx.Node:
    """Insert ``function(node, *args)`` so that all other readers of ``node`` read its result."""
    readers = list(node.users)
    with graph.inserting_after(node):
        inserted = graph.call_function(function, (node, *args))
    for reader in readers:
        reader.replace_input_with(node, inserted)
    return inserted


def quantize_nearest(graph: FloatGraph, calibration: Calibration) -> QuantizedModel:
    """Fix all scales and round every weight to nearest: what an ordinary deployment does.

    Args:
        graph: folded float network.
        calibration: activation parameters.

    Raises:
        InputError: a weight is not finite.
    """
    scheme = calibration.scheme
    layers = {}
    for layer in graph.layers:
        weight = graph.weight(layer)
        if not torch.isfinite(weight).all():
            raise InputError(f"layer {layer.name} has weights that are not finite; repair or retrain the model")
        scale = weight_scales(weight, scheme)
        bias = graph.bias(layer)
        source = graph.node(layer.node).args[0]
        assert isinstance(source, fx.Node)
        grid = calibration.activations.get(source.name)
        if bias is not None and grid is not None:
            scale = _holding(weight, bias, scale, grid.scale)
        quantized = QuantizedLayer(layer, nearest_codes(weight, scale, scheme), scale)
        if bias is not None and grid is not None:
            quantized = with_bias(quantized, bias, _bias_scale(quantized, grid.scale, len(bias)))
        layers[layer.name] = quantized
    return QuantizedModel(
        graph, scheme, calibration.placement, calibration.activations, layers, calibration.output_step
    )


def _holding(weight: Tensor, bias: Tensor, scale: Tensor, input_scale: float) -> Tensor:
    """Weight scales whose accumulator grid holds the bias (O,), with as much room again for its correction.

    Filters that are all but zero, as weight decay leaves them, need another scale than their own: beside a bias that
    their grid cannot hold, their weights add next to nothing. Those that are zero, as pruning leaves them, have none of
    their own: theirs is the coarsest of the others, or the finest that holds the bias.
    """
    least = bias.abs().double() * 2 / (input_scale * _INT32)
    used = (weight != 0).flatten(1).any(1)
    if len(scale) != len(least):
        least, used = least.amax(0, keepdim=True), used.any(0, keepdim=True)
    coarsest = scale[used].amax() if used.any() else scale.new_zeros(())
    return torch.maximum(torch.where(used | (least == 0), scale, coarsest), least.float())


def _bias_scale(layer: QuantizedLayer, input_scale: float, channels: int) -> Tensor:
    """The accumulator's grid, (O,)."""
    scale = (layer.scale.double() * float(torch.tensor(input_scale, dtype=torch.float32))).float()
    return (scale.expand(channels) if layer.scale.numel() == 1 else scale).contiguous()


def with_bias(layer: QuantizedLayer, bias: Tensor, scale: Tensor) -> QuantizedLayer:
    """Round the bias to int32 on the accumulator's grid; clip where it is out of reach of `quantize_nearest`'s scales.

    Args:
        layer: the layer.
        bias: (O,) float.
        scale: (O,) input scale * weight scale.
    """
    steps = torch.round(bias.double() / scale.double().clamp_min(1e-300)).clamp(-_INT32, _INT32)
    return replace(layer, bias_codes=steps.to(torch.int32), bias_scale=scale)
