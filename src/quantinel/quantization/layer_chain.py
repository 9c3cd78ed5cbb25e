"""The chain behind one layer, as the released methods train it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, fx

from quantinel.model.graph import FloatGraph, Layer, aten
from quantinel.quantization.layer_problem import Chain, unchanged
from quantinel.quantization.nodes import Lane, call, channel_dimension, only_reader, source_of
from quantinel.quantization.placement import tail

Quantizer = Callable[[Tensor], Tensor]


def layer_chain(
    graph: FloatGraph, layer: Layer, node: fx.Node, bare: Lane, quantizer: Callable[[str], Quantizer | None]
) -> Chain:
    """A layer, what stands between it and the next activation quantizer, and that quantizer.

    Args:
        graph: the float network.
        layer: the layer.
        node: its node.
        bare: values of the calibration images, up to the layer.
        quantizer: fake quantization of the values at a node, by its name.
    """
    behind, source = _behind(node), source_of(node)
    constants = {item: bare.quantized[item] for item in node.all_input_nodes}
    with torch.inference_mode(False):  # gradients pass through BatchNorm
        for item in {item for step in behind for item in step.all_input_nodes if item.op == "get_attr"}:
            constants[item] = graph.module.get_buffer(str(item.target)).clone()
    output = bare.floating[node]

    def outputs(batch: Tensor, weight: Tensor) -> Tensor:
        result: Tensor = call(node, {**constants, source: batch}, weight)
        return result

    def follow(value: Tensor) -> Tensor:
        last = node
        for step in behind:
            value, last = call(step, {**constants, last: value}), step
        return value

    return Chain(
        inputs=bare.quantized[source],
        floating=bare.floating[source],
        targets=follow(output),
        layer=outputs,
        channel_dimension=channel_dimension(layer, output),
        quantize_layer=(quantizer(node.name) if behind else None) or unchanged,
        follow=follow,
        quantize=quantizer((behind[-1] if behind else node).name) or unchanged,
    )


def _behind(node: fx.Node) -> list[fx.Node]:
    """BatchNorm left in place and a rectifier, where each is the only reader of what is before it."""
    reader = only_reader(node)
    found = [reader] if reader is not None and reader.target is aten.batch_norm.default else []
    last = found[-1] if found else node
    rectifier = tail(last)
    return found if rectifier is last else [*found, rectifier]
