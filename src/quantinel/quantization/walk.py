"""Carry calibration images through the float and the quantized network, and ask a method at every layer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx

from quantinel.errors import InputError, UsageError
from quantinel.model.graph import FloatGraph, Layer
from quantinel.quantization.bias_correction import correct_bias
from quantinel.quantization.calibration import Calibration, Progress
from quantinel.quantization.layer_chain import layer_chain
from quantinel.quantization.layer_problem import (
    BlockOption,
    LayerOutcome,
    LayerProblem,
    LeaningMethod,
    RoundingMethod,
    Stamp,
    StampingMethod,
)
from quantinel.quantization.nodes import Lane, along, call, channel_dimension, residual_connection, source_of
from quantinel.quantization.quantized_model import QuantizedLayer, QuantizedModel
from quantinel.quantization.rounding import dequantize, rounding_cell
from quantinel.quantization.statistics import InputStatistics, input_statistics
from quantinel.quantization.units import Units, times, unit

_POSITIONS = 4096
_POSITIONS_PER_INPUT = 8


class Walk:
    """State of one walk: a lane for the images and one for every stamped copy, and the codes chosen so far."""

    def __init__(
        self,
        graph: FloatGraph,
        calibration: Calibration,
        nearest: QuantizedModel,
        method: RoundingMethod,
        stamps: Sequence[Stamp],
        max_positions: int | None,
        seed: int,
        bias_correction: bool,
        progress: Progress | None,
    ) -> None:
        self.graph, self.calibration, self.nearest, self.method = graph, calibration, nearest, method
        self.max_positions, self.progress = max_positions, progress
        self.seed, self.generator = seed, torch.Generator().manual_seed(seed)
        self.bias_correction = bias_correction
        self.blocks = isinstance(method, BlockOption) and method.blocks
        self.leans = isinstance(method, LeaningMethod)
        self.corrected: dict[str, QuantizedLayer] = {}
        self.layers = {layer.node: layer for layer in graph.layers}
        self.codes: dict[str, Tensor] = {}
        self.outcomes: list[LayerOutcome] = []
        self.stamps = stamps
        self.lanes = [Lane() for _ in range(1 + len(stamps))]
        weight = method.stamp_weight(calibration.scheme) if isinstance(method, StampingMethod) else 1.0
        weights = [1.0, *([weight] * len(stamps))]
        self.roots = [(each * len(weights) / sum(weights)) ** 0.5 for each in weights]  # mean weight 1
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
                    for lane in self.lanes:
                        lane.floating.pop(source, None)
                        lane.quantized.pop(source, None)

    def _evaluate(self, node: fx.Node) -> None:
        self._evaluate_float(node)
        layer = self.layers.get(node.name)
        if layer is not None:
            self.choose(layer, node)
            if self.bias_correction:
                self._correct_bias(layer, node)
        else:
            for lane in self.lanes:
                unchanged = lane.unchanged(node)
                lane.quantized[node] = lane.floating[node] if unchanged else call(node, lane.quantized)
        quantize = self._quantizer(node.name)
        if quantize is not None:
            for lane in self.lanes:
                lane.quantized[node] = quantize(lane.quantized[node])

    def _evaluate_float(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            bare = self.calibration.images.as_float()
            shown = (bare, *(stamp(bare) for stamp in self.stamps))
            for lane, images in zip(self.lanes, shown, strict=True):
                lane.floating[node] = images.contiguous(memory_format=torch.channels_last)
            return
        for lane in self.lanes:
            if node.op == "get_attr":
                lane.floating[node] = self.graph.module.get_buffer(str(node.target))
            else:
                lane.floating[node] = call(node, lane.floating)

    def _run_chosen(self, layer: Layer, node: fx.Node) -> None:
        """Outputs of a layer with its chosen codes, of all lanes."""
        rounded = dequantize(self.codes[layer.name], self.nearest.layers[layer.name].scale)
        for lane in self.lanes:
            lane.quantized[node] = call(node, lane.quantized, rounded)

    def _correct_bias(self, layer: Layer, node: fx.Node) -> None:
        """Give the layer's outputs for bare images the means of the float network; stamped copies move along."""
        bias, rounded = self.graph.bias(layer), self.nearest.layers[layer.name]
        if bias is None:
            return
        expected, actual = self.lanes[0].floating[node], self.lanes[0].quantized[node]
        other = self._connection(node)
        if other is not None:  # the sum shall have the mean that it has in the float network
            actual = actual - (self.lanes[0].floating[other] - self.lanes[0].quantized[other])
        self.corrected[layer.name], shift = correct_bias(
            rounded, bias, expected, actual, channel_dimension(layer, actual)
        )
        for lane in self.lanes:
            lane.quantized[node] = lane.quantized[node] + shift

    def _quantizer(self, point: str) -> Callable[[Tensor], Tensor] | None:
        """Fake quantization of the values at a node; None where there is none."""
        if point not in self.points:
            return None
        quantize, arguments = self.nearest.activation_quantizer(point)
        return lambda value: quantize(value, *arguments)

    def _statistics(self, layer: Layer, node: fx.Node, weight: Tensor) -> tuple[InputStatistics, Units]:
        """Second moments of what a layer receives in the quantized network and of what it should receive."""
        source, other = source_of(node), self._connection(node)
        per_lane = max(_POSITIONS, _POSITIONS_PER_INPUT * weight[0].numel())
        received = self._joined([lane.quantized[source] for lane in self.lanes])
        wanted = self._joined(self._wanted(source))
        shared = wanted is received
        units = Units.of(weight, received) if shared else Units.of(weight, received, wanted)
        received = times(received, units.inputs)
        rounding_error = self.nearest.layers[layer.name].weight() - weight if self.leans else None
        statistics = input_statistics(
            layer,
            node,
            times(weight, units.weight),
            received,
            received if shared else times(wanted, units.inputs),
            max_positions=self.max_positions or per_lane * len(self.lanes),
            generator=self.generator,
            owed=None if other is None else times(times(self._owed(other), units.weight), units.inputs),
            rounding_error=None if rounding_error is None else times(rounding_error, units.weight),
        )
        return statistics, units

    def _wanted(self, node: fx.Node) -> list[Tensor]:
        """What the layer whose turn it is should see of a value, by lane: stamped copies are pulled to the bare images.

        By the layer's depth: not at all for the first, all the way for the last or only one.
        """
        depth = len(self.codes) / (len(self.layers) - 1) if len(self.layers) > 1 else 1.0
        bare = self.lanes[0].floating[node]
        return [bare, *(torch.lerp(lane.floating[node], bare, depth) for lane in self.lanes[1:])]

    def _connection(self, node: fx.Node) -> fx.Node | None:
        """The residual connection that a layer's outputs are added to, if the method asks and it is known already."""
        other = residual_connection(node) if self.blocks else None
        return other if other in self.lanes[0].quantized else None

    def _owed(self, other: fx.Node) -> Tensor:
        """What a residual connection lacks of what it should be, of all lanes."""
        pairs = zip(self._wanted(other), self.lanes, strict=True)
        return self._joined([wanted - lane.quantized[other] for wanted, lane in pairs])

    def _joined(self, values: list[Tensor]) -> Tensor:
        """All lanes in one tensor, by the roots of their weights; a single lane stays the tensor that it is."""
        if len(values) == 1:
            return values[0]
        joined = torch.cat(values)
        for part, root in zip(torch.split(joined, len(values[0])), self.roots, strict=True):
            if root != 1:
                part.mul_(root)
        return joined

    def _errors(
        self, problem: LayerProblem, node: fx.Node, statistics: InputStatistics, codes: Tensor
    ) -> tuple[float, float]:
        """Relative errors of the layer's own outputs, nearest rounding's and the chosen codes', on bare images."""
        layer, nearest, bare = problem.layer, self.nearest.layers[problem.layer.name], self.lanes[0]
        if len(self.lanes) == 1 and self._connection(node) is None:
            both = (dequantize(each, problem.scale) for each in (nearest.codes, codes))
            before, after = (statistics.output_error(problem.weight, rounded) for rounded in both)
            energy = statistics.output_energy
        else:
            expected = bare.floating[node]
            channels, factor = channel_dimension(layer, expected), unit(expected)

            def size(value: Tensor) -> float:
                return float(times(value, factor).square().sum(channels).mean())

            outputs = call(node, bare.quantized, nearest.weight()), bare.quantized[node]
            before, after = (size(output - expected) for output in outputs)
            bias = self.graph.bias(layer)
            energy = size(expected if bias is None else expected - along(bias, expected, channels))
        return before / max(energy, 1e-30), after / max(energy, 1e-30)

    def choose(self, layer: Layer, node: fx.Node | None) -> None:
        """Ask the method for the codes of one layer, run it with them, and record the outcome."""
        started = time.perf_counter()
        weight = self.graph.weight(layer)
        quantized = self.nearest.layers[layer.name]
        statistics, chain, units = None, None, Units(1.0, 1.0)
        if node is not None and self.method.needs != "weights":
            statistics, units = self._statistics(layer, node, weight)
            if self.method.needs in ("activations", "batch-norm"):
                _refuse_large(units, self.method.name, layer.name)
                chain = layer_chain(self.graph, layer, node, self.lanes[0], self._quantizer)
        batch_norm = self.graph.batch_norms.get(layer.name) if self.method.needs == "batch-norm" else None
        scaled, scale = times(weight, units.weight), times(quantized.scale, units.weight)
        cell = rounding_cell(scaled, scale, self.calibration.scheme)
        problem = LayerProblem(
            layer, scaled, scale, cell, self.calibration.scheme, len(self.codes), statistics, chain, batch_norm,
            self.seed,
        )  # fmt: skip
        codes = self.method.choose(problem)
        _check_codes(codes, weight, self.method.name, layer.name)
        self.codes[layer.name] = codes
        if node is not None:
            self._run_chosen(layer, node)
        before = after = None
        if statistics is not None and node is not None:
            before, after = self._errors(problem, node, statistics, codes)
        self.outcomes.append(
            LayerOutcome(
                layer.name,
                codes.numel(),
                float((codes != quantized.codes).float().mean()),
                before,
                after,
                time.perf_counter() - started,
                0 if node is None else len(self.calibration.images),
            )
        )
        if self.progress is not None:
            self.progress("round", len(self.codes), len(self.graph.layers))


def _refuse_large(units: Units, method: str, layer: str) -> None:
    """Methods that train see weights and inputs as they are. Small ones are those of branches that decayed to nothing.

    Raises:
        UsageError: the layer's are too large for that.
    """
    if min(units.weight, units.inputs) < 1:
        raise UsageError(
            f"the weights or inputs of layer {layer} are larger than those of any trained network (about "
            f"{1 / units.weight:.0e} and {1 / units.inputs:.0e} times ordinary ones), so that {method} cannot train "
            "its roundings; choose a method of second moments, such as invariant"
        )


def _check_codes(codes: object, weight: Tensor, method: str, layer: str) -> None:
    """Methods may come from plugins.

    Raises:
        InputError: not int8 of the weight's shape; the message says what was returned.
    """
    if isinstance(codes, Tensor) and codes.shape == weight.shape and codes.dtype == torch.int8:
        return
    given = f"{codes.dtype} {tuple(codes.shape)}" if isinstance(codes, Tensor) else f"a {type(codes).__name__}"
    raise InputError(
        f"method {method} returned {given} as the codes of {layer}; `choose` must return a tensor of torch.int8 "
        f"{tuple(weight.shape)}"
    )
