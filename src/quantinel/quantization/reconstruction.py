"""Choose integers layer by layer while two copies of the network run side by side.

One walk over the graph carries, for all calibration images, the value of every live tensor in the float
network and in the network whose earlier layers are already rounded. At each layer a `RoundingMethod` sees the
weight, its grid and (if it asks) the second moments of both inputs, and returns the codes. The integers of a
layer depend on those before it, so these moments cannot be collected in the calibration pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, fx

from quantinel.errors import InputError
from quantinel.model.graph import FloatGraph, Layer
from quantinel.quantization.calibration import Calibration, Progress
from quantinel.quantization.placement import is_rectifier
from quantinel.quantization.quantized_model import QuantizedModel, quantize_nearest
from quantinel.quantization.rounding import RoundingCell, dequantize, rounding_cell
from quantinel.quantization.scheme import QuantScheme
from quantinel.quantization.statistics import InputStatistics, input_statistics

_POSITIONS = 4096
_POSITIONS_PER_INPUT = 8


@dataclass(frozen=True)
class LayerProblem:
    """What a rounding method may know about one layer.

    Attributes:
        layer: the layer.
        weight: (O, ...) folded float weight.
        scale: (O,) or (1,).
        cell: floor, ceiling, fraction and truncation error of every weight.
        scheme: the grid.
        index: position of the layer, for seeds.
        statistics: second moments of the inputs; None unless the method needs "statistics" or "activations".
        chain: inputs, targets and forward function for gradient methods; None unless it needs "activations".
    """

    layer: Layer
    weight: Tensor
    scale: Tensor
    cell: RoundingCell
    scheme: QuantScheme
    index: int
    statistics: InputStatistics | None
    chain: Chain | None


@dataclass(frozen=True)
class Chain:
    """A layer with the rectifier and activation quantizer that follow it, as the released methods train it.

    Attributes:
        inputs: (N, ...) quantized prefix.
        targets: (N, O, ...) float outputs of the chain.
        forward: maps (inputs, weight) to outputs; differentiable.
        channel_dimension: 1 for convolutions and (N, O) outputs, -1 for token sequences.
    """

    inputs: Tensor
    targets: Tensor
    forward: Callable[[Tensor, Tensor], Tensor]
    channel_dimension: int


class RoundingMethod(Protocol):
    """A way to choose integers. A frozen dataclass whose fields are the hyper-parameters."""

    @property
    def name(self) -> str:
        """Name as in ``quantinel list defenses``."""

    @property
    def needs(self) -> Literal["weights", "statistics", "activations"]:
        """What `LayerProblem` must carry; "weights" needs no images."""

    def choose(self, problem: LayerProblem) -> Tensor:
        """int8 codes of the weight's shape."""


@dataclass(frozen=True)
class LayerOutcome:
    """What choosing did to one layer.

    Attributes:
        layer: name.
        weights: how many.
        changed: share of codes that differ from nearest rounding.
        error_nearest: relative output error (share of the output's energy) of nearest rounding; None where no
            statistics were collected.
        error_chosen: the same for the chosen codes.
        seconds: time for this layer, statistics included.
        images: calibration images that the walk used; 0 where the method needs none.
    """

    layer: str
    weights: int
    changed: float
    error_nearest: float | None
    error_chosen: float | None
    seconds: float
    images: int


@torch.inference_mode()
def choose_codes(
    graph: FloatGraph,
    calibration: Calibration,
    method: RoundingMethod,
    *,
    max_positions: int | None = None,
    memory: int = 1 << 30,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[QuantizedModel, tuple[LayerOutcome, ...]]:
    """Choose the integers of every layer with ``method``.

    Args:
        graph: folded float network.
        calibration: activation parameters and calibration images.
        method: how to round.
        max_positions: input vectors per layer for second moments; more are sampled. By default 4,096, or eight for
            each input of a layer's weight where that is more: moments of wider layers need more vectors.
        memory: bytes that the largest activation tensor may take; where all calibration images together exceed it,
            the walk uses the first ones that fit (at least 2).
        seed: of that sample.
        progress: called after each layer.

    Returns:
        The quantized model and one outcome per layer.
    """
    nearest = quantize_nearest(graph, calibration)
    if method.needs != "weights":
        fitting = max(2, memory // _largest_activation(graph, calibration))
        calibration = replace(
            calibration, images=calibration.images.take(torch.arange(len(calibration.images))[:fitting])
        )
    walk = _Walk(graph, calibration, nearest, method, max_positions, seed, progress)
    if method.needs == "weights":
        for layer in graph.layers:
            walk.choose(layer, None, None)
    else:
        walk.run_all()
    return nearest.with_codes(walk.codes), tuple(walk.outcomes)


def _largest_activation(graph: FloatGraph, calibration: Calibration) -> int:
    """Bytes of the largest intermediate tensor of one image."""
    sizes = [1]

    class Measure(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, Tensor) and n.op != "get_attr":
                sizes.append(value.numel() * value.element_size() // 2)
            return value

    Measure(graph.module).run(calibration.images.take(torch.arange(2)).as_float())
    return max(sizes)


class _Walk:
    """State of one walk: values by node in both networks, and the codes chosen so far."""

    def __init__(
        self,
        graph: FloatGraph,
        calibration: Calibration,
        nearest: QuantizedModel,
        method: RoundingMethod,
        max_positions: int | None,
        seed: int,
        progress: Progress | None,
    ) -> None:
        self.graph, self.calibration, self.nearest, self.method = graph, calibration, nearest, method
        self.max_positions, self.progress = max_positions, progress
        self.generator = torch.Generator().manual_seed(seed)
        self.layers = {layer.node: layer for layer in graph.layers}
        self.codes: dict[str, Tensor] = {}
        self.outcomes: list[LayerOutcome] = []
        self.float_values: dict[fx.Node, Any] = {}
        self.quantized_values: dict[fx.Node, Any] = {}
        self.points = set(calibration.placement.points)

    def run_all(self) -> None:
        """Evaluate every node once in both networks; free what nothing reads any more."""
        nodes = list(self.graph.module.graph.nodes)
        last_use: dict[fx.Node, fx.Node] = {}
        for node in nodes:
            for source in node.all_input_nodes:
                last_use[source] = node
        for node in nodes:
            if node.op == "output":
                break
            self._evaluate(node)
            for source in node.all_input_nodes:
                if last_use[source] is node:
                    self.float_values.pop(source, None)
                    self.quantized_values.pop(source, None)

    def _evaluate(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            value: Any = self.calibration.images.as_float().contiguous(memory_format=torch.channels_last)
            quantized = value
        elif node.op == "get_attr":
            value = quantized = self.graph.module.get_buffer(str(node.target))
        else:
            value = self._call(node, self.float_values)
            if node.name in self.layers:
                layer = self.layers[node.name]
                self.choose(layer, node, value)
                quantized = self._rounded_call(node, layer)
            elif all(
                self.quantized_values.get(source) is self.float_values.get(source) for source in node.all_input_nodes
            ):
                quantized = value
            else:
                quantized = self._call(node, self.quantized_values)
        if node.name in self.points:
            quantized = self._quantize_activation(node.name, quantized)
        self.float_values[node] = value
        self.quantized_values[node] = quantized

    def _call(self, node: fx.Node, values: Mapping[fx.Node, Any], weight: Tensor | None = None) -> Any:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda item: values[item])
        if weight is not None:
            args = (args[0], weight, *args[2:])
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def _rounded_call(self, node: fx.Node, layer: Layer) -> Tensor:
        rounded = dequantize(self.codes[layer.name], self.nearest.layers[layer.name].scale)
        result: Tensor = self._call(node, self.quantized_values, rounded)
        return result

    def _quantize_activation(self, point: str, value: Tensor) -> Tensor:
        quantize, arguments = self.nearest.activation_quantizer(point)
        return quantize(value, *arguments)

    def choose(self, layer: Layer, node: fx.Node | None, output: Tensor | None) -> None:
        """Ask the method for the codes of one layer and record the outcome."""
        started = time.perf_counter()
        weight = self.graph.weight(layer)
        quantized = self.nearest.layers[layer.name]
        cell = rounding_cell(weight, quantized.scale, self.calibration.scheme)
        statistics, chain = None, None
        if node is not None and output is not None:
            source = node.args[0]
            assert isinstance(source, fx.Node)
            inputs = self.quantized_values[source]
            statistics = input_statistics(
                layer,
                node,
                weight,
                inputs,
                self.float_values[source],
                max_positions=self.max_positions or max(_POSITIONS, _POSITIONS_PER_INPUT * weight[0].numel()),
                generator=self.generator,
            )
            if self.method.needs == "activations":
                chain = self._chain(node, output, inputs)
        problem = LayerProblem(
            layer, weight, quantized.scale, cell, self.calibration.scheme, len(self.codes), statistics, chain
        )
        codes = self.method.choose(problem)
        if codes.shape != weight.shape or codes.dtype != torch.int8:
            raise InputError(f"method {self.method.name} returned codes of shape {tuple(codes.shape)} for {layer.name}")
        self.codes[layer.name] = codes
        before = after = None
        if statistics is not None:
            energy = max(statistics.output_energy, 1e-30)
            before = statistics.output_error(weight, quantized.weight()) / energy
            after = statistics.output_error(weight, dequantize(codes, quantized.scale)) / energy
        self.outcomes.append(
            LayerOutcome(
                layer.name,
                codes.numel(),
                float((codes != quantized.codes).float().mean()),
                before,
                after,
                time.perf_counter() - started,
                0 if statistics is None else len(self.calibration.images),
            )
        )
        if self.progress is not None:
            self.progress("round", len(self.codes), len(self.graph.layers))

    def _chain(self, node: fx.Node, output: Tensor, inputs: Tensor) -> Chain:
        """Layer, its rectifier if that is its only reader, and the activation quantizer behind them."""
        tail, target = node, output
        reader = next(iter(node.users)) if len(node.users) == 1 else None
        rectifier = reader if reader is not None and is_rectifier(reader) else None
        if rectifier is not None:
            tail = rectifier
            target = rectifier.target(output, *rectifier.args[1:], **rectifier.kwargs)  # type: ignore[operator]
        point = tail.name if tail.name in self.points else None
        constants = {item: self.quantized_values[item] for item in node.all_input_nodes}
        source = node.args[0]
        assert isinstance(source, fx.Node)

        def forward(batch: Tensor, weight: Tensor) -> Tensor:
            result: Tensor = self._call(node, {**constants, source: batch}, weight)
            if rectifier is not None:
                result = rectifier.target(result, *rectifier.args[1:], **rectifier.kwargs)  # type: ignore[operator]
            return result if point is None else self._quantize_activation(point, result)

        convolution = self.layers[node.name].kind == "conv" or output.ndim == 2
        return Chain(inputs, target, forward, 1 if convolution else -1)
