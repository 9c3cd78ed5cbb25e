"""Where activations are quantized.

The rules reproduce what integer kernels need (specification of the quantization stack, 2c):

1. every input of a quantized layer;
2. the output of every convolution, after its ReLU-like activation where there is one;
3. a residual addition, at both inputs and at its output, when both inputs are quantized anyway;
4. linear layers are quantized at their inputs only (quantizing their outputs before the bias made OpenVINO
   deviate by several logits on transformers, and no runtime needs it);
5. logits stay float, also where they are only moved on their way to the output: rounding them would create ties. A
   convolution that computes them is a linear layer after folding, if it reads the whole of its input at one position;
   any other one keeps its point, without which it would not run in integers.

Operators that only move values (reshape, max pooling, zero padding) keep the grid of their input: their point
is *tied* to the one before them, so the second rounding changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from quantinel.model.graph import CONVOLUTIONS, FloatGraph, aten
from quantinel.quantization.nodes import only_reader, source_of

_MOVES = (
    aten.flatten.using_ints, aten.view.default, aten.reshape.default, aten.permute.default, aten.transpose.int,
    aten.slice.Tensor, aten.select.int, aten.squeeze.dim, aten.squeeze.default, aten.unsqueeze.default,
    aten.expand.default, aten.max_pool2d.default, aten.pixel_shuffle.default, aten.pixel_unshuffle.default,
    aten.channel_shuffle.default,
)  # fmt: skip
_ADDITIONS = (aten.add.Tensor,)


@dataclass(frozen=True)
class Placement:
    """Nodes whose outputs are quantized.

    Attributes:
        points: node names in execution order.
        ties: point -> the point whose scale and zero point it shares.
    """

    points: tuple[str, ...]
    ties: dict[str, str]

    def root(self, point: str) -> str:
        """The point that owns the parameters of ``point``."""
        while point in self.ties:
            point = self.ties[point]
        return point


def place(graph: FloatGraph, inputs_only: bool = False) -> Placement:
    """Choose the quantization points of a folded graph.

    Args:
        graph: folded float network.
        inputs_only: rule 1 alone, for ranges that are measured at run time.
    """
    nodes = {node.name: node for node in graph.module.graph.nodes}
    points: set[fx.Node] = set()
    for layer in graph.layers:
        node = nodes[layer.node]
        points.add(source_of(node))
        if node.target in CONVOLUTIONS and not inputs_only:
            points.add(tail(node))
    for node in (
        () if inputs_only else graph.module.graph.nodes
    ):  # in execution order: an addition may feed the next one
        operands = node.args[:2] if node.op == "call_function" and node.target in _ADDITIONS else ()
        if len(operands) == 2 and all(isinstance(item, fx.Node) and _on_grid(item, points) for item in operands):
            points.update(item for item in operands if isinstance(item, fx.Node))
            points.add(tail(node))
    output = next(node for node in reversed(graph.module.graph.nodes) if node.op == "output").args[0]
    fused = {tail(nodes[layer.node]) for layer in graph.layers if layer.kind == "conv"}  # integers only with a point
    points -= set(_logits(output)) - fused
    ordered = [node for node in graph.module.graph.nodes if node in points]
    ties = {}
    for node in ordered:
        source = _moved_from(node)
        while source is not None and source not in points:
            source = _moved_from(source)
        if source is not None:
            ties[node.name] = source.name
    return Placement(tuple(node.name for node in ordered), ties)


def _logits(output: fx.Node) -> Iterator[fx.Node]:
    """The output, and before it what only operators that move values read on the way there."""
    current: fx.Node | None = output
    while current is not None:
        yield current
        source = _moved_from(current)
        current = source if source is not None and len(source.users) == 1 else None


def tail(node: fx.Node) -> fx.Node:
    """The ReLU-like activation that is the only reader of ``node``, or the node itself."""
    reader = only_reader(node)
    return reader if reader is not None and is_rectifier(reader) else node


def is_rectifier(node: fx.Node) -> bool:
    """ReLU, ReLU6 and clamps at zero: activations that an unsigned grid absorbs."""
    if node.op != "call_function":
        return False
    if node.target in (aten.relu.default, aten.relu6.default):
        return True
    if node.target is aten.hardtanh.default:
        return len(node.args) > 1 and _is_zero(node.args[1])
    clamps = node.target in (aten.clamp.default, aten.clamp_min.default)
    return clamps and len(node.args) > 1 and _is_zero(node.args[1])


def _is_zero(argument: object) -> bool:
    return isinstance(argument, int | float) and argument == 0


def _moved_from(node: fx.Node) -> fx.Node | None:
    """The input of an operator that only moves values; None for any other operator."""
    if node.op != "call_function":
        return None
    moves = node.target in _MOVES
    if node.target is aten.pad.default:
        mode = node.args[2] if len(node.args) > 2 else "constant"
        value = node.args[3] if len(node.args) > 3 else None
        moves = mode != "constant" or not value
    elif node.target is aten.constant_pad_nd.default:
        moves = len(node.args) < 3 or not node.args[2]
    source = node.args[0] if moves else None
    return source if isinstance(source, fx.Node) else None


def _on_grid(node: fx.Node, points: set[fx.Node]) -> bool:
    current: fx.Node | None = node
    while current is not None:
        if current in points:
            return True
        current = _moved_from(current)
    return False
