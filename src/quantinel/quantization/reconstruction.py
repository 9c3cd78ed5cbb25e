"""Choose integers layer by layer while two copies of the network run side by side.

One walk over the graph carries, for all calibration images (and for stamped copies of them, where a method asks for
some), the value of every live tensor in the float network and in the network whose earlier layers are already rounded.
At each layer a `RoundingMethod` sees the weight, its grid and (if it asks) the second moments of both inputs, and
returns the codes. The integers of a layer depend on those before it, so these moments cannot be collected in the
calibration pass.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx

from quantinel.data.images import ImageSet
from quantinel.errors import InputError, UnsupportedError, UsageError
from quantinel.model.graph import FloatGraph, Layer, aten
from quantinel.quantization.bias_correction import correct_bias
from quantinel.quantization.calibration import Calibration, Progress
from quantinel.quantization.layer_problem import (
    BiasOption,
    BlockOption,
    Chain,
    LayerOutcome,
    LayerProblem,
    Needs,
    RoundingMethod,
    Stamp,
    StampingMethod,
)
from quantinel.quantization.placement import is_rectifier
from quantinel.quantization.quantized_model import QuantizedLayer, QuantizedModel, quantize_nearest
from quantinel.quantization.rounding import dequantize, rounding_cell
from quantinel.quantization.statistics import InputStatistics, input_statistics

__all__ = [
    "BiasOption",
    "BlockOption",
    "Chain",
    "LayerOutcome",
    "LayerProblem",
    "Needs",
    "RoundingMethod",
    "Stamp",
    "StampingMethod",
    "choose_codes",
]

_POSITIONS = 4096
_POSITIONS_PER_INPUT = 8


def choose_codes(
    graph: FloatGraph,
    calibration: Calibration,
    method: RoundingMethod,
    *,
    max_positions: int | None = None,
    memory: int = 1 << 30,
    seed: int = 0,
    bias_correction: bool | None = None,
    progress: Progress | None = None,
) -> tuple[QuantizedModel, tuple[LayerOutcome, ...]]:
    """Choose the integers of every layer with ``method``.

    Args:
        graph: folded float network.
        calibration: activation parameters and calibration images.
        method: how to round.
        max_positions: input vectors per layer for second moments; more are sampled. By default 4,096, or eight for
            each input of a layer's weight where that is more (moments of wider layers need more vectors), of the bare
            images and of every stamped copy.
        memory: bytes that the largest activation tensor may take, stamped copies included; where all calibration images
            together exceed it, the walk uses the first ones that fit (at least 2), or, where copies are stamped, as
            many from all over the set.
        seed: of that sample, and of methods that choose at random.
        bias_correction: see `bias_correction`; None leaves it to the method's own option. Layers without a bias
            have nowhere to put a correction and stay as they are.
        progress: called after each layer.

    Returns:
        The quantized model and one outcome per layer.

    Raises:
        UnsupportedError: the method needs BatchNorm, and the network has none that was folded.
        UsageError: bias correction on a scheme whose biases are not integers.
    """
    if bias_correction is None:
        bias_correction = isinstance(method, BiasOption) and method.bias_correction
        if isinstance(method, BiasOption) and method.corrects_where_possible:
            bias_correction &= calibration.scheme.activations == "static"
    if method.needs == "batch-norm" and not graph.batch_norms:
        raise UnsupportedError(
            f"{method.name} is not applicable: it needs the running statistics of BatchNorm layers that were folded "
            "into a convolution or linear layer, and this network has none (it was saved after folding, has no "
            "BatchNorm there, or was traced without folding it)"
        )
    if bias_correction and calibration.scheme.activations != "static":
        raise UsageError(
            f"bias correction rounds to the integer biases of static activations, and {calibration.scheme.name} keeps "
            "biases in float; leave it out, or choose a static scheme"
        )
    with torch.inference_mode(mode=False), torch.enable_grad():  # a method may search by gradient
        nearest = quantize_nearest(graph, calibration)
        stamps: Sequence[Stamp] = ()
        if isinstance(method, StampingMethod):
            if progress is not None:
                progress("search", 0, 1)
            stamps = method.stamps(graph, calibration, nearest, seed)
            if progress is not None:
                progress("search", 1, 1)
    blind = method.needs == "weights" and not bias_correction
    with torch.inference_mode():
        if not blind:
            fitting = max(2, memory // (_largest_activation(graph, calibration) * (1 + len(stamps))))
            calibration = replace(calibration, images=_first(calibration.images, fitting, spread=bool(stamps)))
        walk = _Walk(graph, calibration, nearest, method, stamps, max_positions, seed, bias_correction, progress)
        if blind:
            for layer in graph.layers:
                walk.choose(layer, None)
        else:
            walk.run_all()
        return nearest.with_layers(walk.corrected).with_codes(walk.codes), tuple(walk.outcomes)


def _first(images: ImageSet, fitting: int, *, spread: bool) -> ImageSet:
    """As many images as fit: from all over the set, or its first ones."""
    count = len(images)
    fitting = min(fitting, count)
    return images.take(torch.arange(fitting) * count // fitting if spread else torch.arange(fitting))


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


@dataclass
class _Lane:
    """Values by node of one set of images, in both networks."""

    floating: dict[fx.Node, Any] = field(default_factory=dict)
    quantized: dict[fx.Node, Any] = field(default_factory=dict)

    def unchanged(self, node: fx.Node) -> bool:
        """Whether both networks have computed the same so far."""
        return all(self.quantized.get(source) is self.floating.get(source) for source in node.all_input_nodes)


class _Walk:
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
        self.corrected: dict[str, QuantizedLayer] = {}
        self.layers = {layer.node: layer for layer in graph.layers}
        self.depths = {layer.node: index for index, layer in enumerate(graph.layers)}
        self.codes: dict[str, Tensor] = {}
        self.outcomes: list[LayerOutcome] = []
        self.stamps = stamps
        self.lanes = [_Lane() for _ in range(1 + len(stamps))]
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
        if node.op == "placeholder":
            bare = self.calibration.images.as_float()
            shown = (bare, *(stamp(bare) for stamp in self.stamps))
            for lane, images in zip(self.lanes, shown, strict=True):
                lane.floating[node] = images.contiguous(memory_format=torch.channels_last)
        for lane in self.lanes:
            if node.op == "placeholder":
                pass
            elif node.op == "get_attr":
                lane.floating[node] = self.graph.module.get_buffer(str(node.target))
            else:
                lane.floating[node] = self._call(node, lane.floating)
        layer = self.layers.get(node.name)
        if layer is not None:
            self.choose(layer, node)
        for lane in self.lanes:
            if layer is not None:
                lane.quantized[node] = self._rounded_call(node, layer, lane)
            elif lane.unchanged(node):
                lane.quantized[node] = lane.floating[node]
            else:
                lane.quantized[node] = self._call(node, lane.quantized)
        if layer is not None and self.bias_correction:
            self._correct_bias(layer, node)
        if node.name in self.points:
            for lane in self.lanes:
                lane.quantized[node] = self._quantize_activation(node.name, lane.quantized[node])

    def _call(self, node: fx.Node, values: Mapping[fx.Node, Any], weight: Tensor | None = None) -> Any:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda item: values[item])
        if weight is not None:
            args = (args[0], weight, *args[2:])
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def _rounded_call(self, node: fx.Node, layer: Layer, lane: _Lane) -> Tensor:
        rounded = dequantize(self.codes[layer.name], self.nearest.layers[layer.name].scale)
        result: Tensor = self._call(node, lane.quantized, rounded)
        return result

    def _correct_bias(self, layer: Layer, node: fx.Node) -> None:
        """Give the layer's outputs for bare images the means of the float network; stamped copies move along."""
        bias, rounded = self.graph.bias(layer), self.nearest.layers[layer.name]
        if bias is None or rounded.bias_codes is None:
            return
        expected, actual = self.lanes[0].floating[node], self.lanes[0].quantized[node]
        owed = self._owed(node)
        if owed is not None:
            actual = actual - owed[: len(actual)]
        self.corrected[layer.name], shift = correct_bias(
            rounded, bias, expected, actual, _channel_dimension(layer, actual)
        )
        for lane in self.lanes:
            lane.quantized[node] = lane.quantized[node] + shift

    def _quantize_activation(self, point: str, value: Tensor) -> Tensor:
        quantize, arguments = self.nearest.activation_quantizer(point)
        return quantize(value, *arguments)

    def _depth(self, node: fx.Node) -> float:
        """Of a layer: 0 for the first, 1 for the last or only one."""
        return self.depths[node.name] / (len(self.layers) - 1) if len(self.layers) > 1 else 1.0

    def _statistics(self, layer: Layer, node: fx.Node, weight: Tensor) -> InputStatistics:
        """Second moments of what a layer receives in the quantized network and of what it should receive."""
        source = _source(node)
        bare, others = self.lanes[0], self.lanes[1:]
        quantized, wanted = bare.quantized[source], bare.floating[source]
        if others:
            pulled = [torch.lerp(lane.floating[source], wanted, self._depth(node)) for lane in others]
            quantized, wanted = torch.cat([lane.quantized[source] for lane in self.lanes]), torch.cat([wanted, *pulled])
        per_lane = max(_POSITIONS, _POSITIONS_PER_INPUT * weight[0].numel())
        return input_statistics(
            layer,
            node,
            weight,
            quantized,
            wanted,
            max_positions=self.max_positions or per_lane * len(self.lanes),
            generator=self.generator,
            owed=self._owed(node),
        )

    def _errors(
        self, layer: Layer, node: fx.Node, statistics: InputStatistics, weight: Tensor, codes: Tensor
    ) -> tuple[float, float]:
        """Relative output errors of nearest rounding and of the chosen codes, on bare images."""
        scale, energy = self.nearest.layers[layer.name].scale, max(statistics.output_energy, 1e-30)
        both = self.nearest.layers[layer.name].weight(), dequantize(codes, scale)
        if len(self.lanes) == 1:
            before, after = (statistics.output_error(weight, rounded) / energy for rounded in both)
            return before, after
        bare, channels = self.lanes[0], _channel_dimension(layer, self.lanes[0].floating[node])
        before, after = (
            float((self._call(node, bare.quantized, rounded) - bare.floating[node]).square().sum(channels).mean())
            for rounded in both
        )
        return before / energy, after / energy

    def _owed(self, node: fx.Node) -> Tensor | None:
        """What a residual connection that ``node`` is added to lacks of what it should be, of all lanes."""
        other = residual_connection(node) if self.blocks else None
        if other is None or other not in self.lanes[0].quantized:
            return None
        bare, depth = self.lanes[0], self._depth(node)
        return torch.cat([
            torch.lerp(lane.floating[other], bare.floating[other], depth) - lane.quantized[other] for lane in self.lanes
        ])  # fmt: skip

    def choose(self, layer: Layer, node: fx.Node | None) -> None:
        """Ask the method for the codes of one layer and record the outcome."""
        started = time.perf_counter()
        weight = self.graph.weight(layer)
        quantized = self.nearest.layers[layer.name]
        cell = rounding_cell(weight, quantized.scale, self.calibration.scheme)
        statistics, chain = None, None
        if node is not None and self.method.needs != "weights":
            statistics = self._statistics(layer, node, weight)
            if self.method.needs in ("activations", "batch-norm"):
                chain = self._chain(node, layer)
        batch_norm = self.graph.batch_norms.get(layer.name) if self.method.needs == "batch-norm" else None
        problem = LayerProblem(
            layer, weight, quantized.scale, cell, self.calibration.scheme, len(self.codes), statistics, chain,
            batch_norm, self.seed,
        )  # fmt: skip
        codes = self.method.choose(problem)
        if codes.shape != weight.shape or codes.dtype != torch.int8:
            raise InputError(f"method {self.method.name} returned codes of shape {tuple(codes.shape)} for {layer.name}")
        self.codes[layer.name] = codes
        before = after = None
        if statistics is not None and node is not None:
            before, after = self._errors(layer, node, statistics, weight, codes)
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

    def _chain(self, node: fx.Node, layer: Layer) -> Chain:
        """Layer, its rectifier if that is its only reader, and the activation quantizer behind them."""
        reader = next(iter(node.users)) if len(node.users) == 1 else None
        rectifier = reader if reader is not None and is_rectifier(reader) else None
        point = (rectifier or node).name
        bare, source = self.lanes[0], _source(node)
        constants = {item: bare.quantized[item] for item in node.all_input_nodes}
        output = bare.floating[node]

        def call(batch: Tensor, weight: Tensor) -> Tensor:
            result: Tensor = self._call(node, {**constants, source: batch}, weight)
            return result

        def rectify(value: Tensor) -> Tensor:
            if rectifier is None:
                return value
            result: Tensor = rectifier.target(value, *rectifier.args[1:], **rectifier.kwargs)  # type: ignore[operator]
            return result

        def quantize(value: Tensor) -> Tensor:
            return self._quantize_activation(point, value) if point in self.points else value

        return Chain(
            bare.quantized[source], rectify(output), call, _channel_dimension(layer, output), rectify, quantize
        )


def _source(node: fx.Node) -> fx.Node:
    """Where a layer's inputs come from."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source


def residual_connection(node: fx.Node) -> fx.Node | None:
    """The other summand where the only thing that happens to a tensor is an addition to another of its shape."""
    reader = next(iter(node.users)) if len(node.users) == 1 else None
    if reader is None or reader.target is not aten.add.Tensor or reader.kwargs.get("alpha", 1) != 1:
        return None
    other = next((item for item in reader.args if item is not node), None)
    if not isinstance(other, fx.Node):
        return None
    shapes = [getattr(item.meta.get("val"), "shape", None) for item in (node, other)]
    return other if shapes[0] is not None and shapes[0] == shapes[1] else None


def _channel_dimension(layer: Layer, output: Tensor) -> int:
    return 1 if layer.kind == "conv" or output.ndim == 2 else -1
