"""Which values of an ONNX graph depend on the image: stored numbers and arithmetic with shapes do not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx

from quantinel.backends.onnx_constants import Array, read_tensor
from quantinel.errors import VerificationError

RANDOM = frozenset(["RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli",
                    "Multinomial"])  # fmt: skip
CONTROL = frozenset(["If", "Loop", "Scan", "SequenceMap", "Optional", "OptionalGetElement"])
_OF_SHAPES = frozenset(["Shape", "Size"])


def constants(model: onnx.ModelProto) -> set[str]:
    """Names of values that are the same for every input of the network."""
    return _closure(model.graph.node, {tensor.name for tensor in model.graph.initializer})


def shape_values(model: onnx.ModelProto, constant: set[str]) -> set[str]:
    """Names of values that depend on the input's shape and not on its content."""
    measured = {name for node in model.graph.node if node.op_type in _OF_SHAPES for name in node.output}
    return _closure(model.graph.node, constant | measured) - constant


def _closure(nodes: Iterable[onnx.NodeProto], known: set[str]) -> set[str]:
    found = set(known)
    for node in nodes:  # sorted topologically, as the checker requires
        if node.op_type not in RANDOM and all(name in found for name in node.input if name):
            found.update(node.output)
    return found


def stored_arrays(model: onnx.ModelProto) -> Mapping[str, onnx.TensorProto]:
    """Initializers and the values of Constant nodes, by name."""
    found = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        for item in node.attribute if node.op_type == "Constant" else ():
            if item.name == "value":
                found[node.output[0]] = item.t
    return found


def as_array(tensor: onnx.TensorProto) -> Array | None:
    """The numbers; None where the bytes make none."""
    try:
        return read_tensor(tensor)
    except VerificationError:
        return None
