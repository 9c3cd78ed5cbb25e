"""Operators, inputs and domains of a shipped file that the float model gives no reason for.

A backdoor needs no odd integers where a file may hold a branch of its own: a detector of the trigger and a switch. The
file's operators are held against those that this project's own writer gives the same float model. Exporters choose
differently among equal operators, so only those are counted that a branch cannot do without: operators that join two
computed values, and operators that decide.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import onnx

from quantinel.backends.onnx_qdq import PROFILES, to_onnx
from quantinel.errors import UnsupportedError
from quantinel.model.graph import FloatGraph, float_products
from quantinel.quantization.placement import Placement
from quantinel.quantization.quantized_model import QuantizedLayer, QuantizedModel
from quantinel.quantization.ranges import weight_scales
from quantinel.quantization.rounding import nearest_codes
from quantinel.quantization.scheme import parse_scheme

_JOINING = {
    "Add": "Add", "QLinearAdd": "Add", "Sub": "Sub", "Mul": "Mul", "QLinearMul": "Mul", "Div": "Div",
    "Concat": "Concat", "QLinearConcat": "Concat", "Max": "Max", "Min": "Min", "Sum": "Add",
}  # fmt: skip
_DECIDING = frozenset([
    "Where", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Not", "Xor", "Sign", "ArgMax",
    "ArgMin", "TopK", "NonZero", "ScatterND", "ScatterElements", "Scatter", "Compress", "Unique", "Mod", "Hardmax",
    "IsNaN", "IsInf", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "OneHot", "QLinearWhere", "ThresholdedRelu", "Shrink",
])  # fmt: skip
_CONTROL = frozenset(["If", "Loop", "Scan", "SequenceMap", "Optional", "OptionalGetElement"])
_RANDOM = frozenset(["RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli",
                     "Multinomial"])  # fmt: skip
_STANDARD = ("", "ai.onnx")
_RUNTIME = ("com.microsoft",)
_MOST_NAMED = 5


@dataclass(frozen=True)
class StructureNote:
    """Something about the file as a whole.

    Attributes:
        id: stable name.
        level: "error" where no quantizer adds it, "warning" where one might.
        detail: a sentence.
    """

    id: str
    level: Literal["info", "warning", "error"]
    detail: str


def structure_notes(graph: FloatGraph, model: onnx.ModelProto) -> list[StructureNote]:
    """Compare the file's structure with the float model's.

    Args:
        graph: folded float network.
        model: the shipped file, checked.
    """
    notes = list(_foreign(model))
    counted = _counts(model)
    try:
        expected = _counts(_reference(graph))
    except UnsupportedError as error:
        notes.append(
            StructureNote("structure-unknown", "warning", f"operators were not compared with the float model: {error}")
        )
    else:
        for name in sorted(counted.keys() - {"MatMul"}):
            more = counted[name] - expected[name]
            if more > 0:
                notes.append(
                    StructureNote(
                        "operators-added", "error" if name in _DECIDING else "warning",
                        f"{more} more {name} on computed values than the float model has ({counted[name]} instead of "
                        f"{expected[name]}); a hidden branch needs such operators; some exporters spell others so",
                    )
                )  # fmt: skip
    products = counted["MatMul"]
    if products and not float_products(graph)[0]:
        notes.append(
            StructureNote(
                "operators-added", "error",
                f"{products} products of two computed tensors, and the float model has none",
            )
        )  # fmt: skip
    return notes


def _reference(graph: FloatGraph) -> onnx.ModelProto:
    """The float model as this project writes it; weights are rounded, which changes no operator."""
    scheme = parse_scheme("int8-weight-only")
    layers = {}
    for layer in graph.layers:
        weight = graph.weight(layer)
        scale = weight_scales(weight, scheme)
        layers[layer.name] = QuantizedLayer(layer, nearest_codes(weight, scale, scheme), scale)
    quantized = QuantizedModel(graph, scheme, Placement((), {}), {}, layers, 1.0)
    return to_onnx(quantized, PROFILES["onnxruntime-x86"])


def _counts(model: onnx.ModelProto) -> Counter[str]:
    """Joining operators with two computed inputs and deciding operators, by their standard names."""
    constant = _constants(model)
    accumulated = {node.output[0] for node in model.graph.node if node.op_type in ("ConvInteger", "MatMulInteger")}
    rescaled = {node.output[0] for node in model.graph.node if accumulated & set(node.input)}
    found: Counter[str] = Counter()
    for node in model.graph.node:
        computed = sum(name not in constant for name in node.input if name)
        if node.op_type in _JOINING:
            if computed > 1 and not any(name in rescaled for name in node.input):
                found[_JOINING[node.op_type]] += 1
        elif (node.op_type in _DECIDING and computed) or (node.op_type == "MatMul" and computed > 1):
            found[node.op_type] += 1
    return found


def _constants(model: onnx.ModelProto) -> set[str]:
    """Names of values that do not depend on the input of the network."""
    constant = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:  # sorted topologically, as the checker requires
        if node.op_type not in _RANDOM and all(name in constant for name in node.input if name):
            constant.update(node.output)
    return constant


def _foreign(model: onnx.ModelProto) -> Iterator[StructureNote]:
    """What no float classifier needs."""
    domains: dict[str, set[str]] = {}
    for node in model.graph.node:
        if node.domain not in _STANDARD:
            domains.setdefault(node.domain, set()).add(node.op_type)
    for domain, names in sorted(domains.items()):
        known = domain in _RUNTIME
        yield StructureNote(
            "custom-domain", "info" if known else "error",
            f"operators {', '.join(sorted(names)[:_MOST_NAMED])} of the domain {domain!r}"
            + (", ONNX Runtime's own" if known else ": their code is not in the file and was not examined"),
        )  # fmt: skip
    if model.functions:
        defined = ", ".join(function.name for function in list(model.functions)[:_MOST_NAMED])
        yield StructureNote("local-functions", "error", f"the file defines operators of its own: {defined}")
    used = {node.op_type for node in model.graph.node}
    if used & _CONTROL:
        yield StructureNote("control-flow", "error", f"the file branches by {', '.join(sorted(used & _CONTROL))}")
    if used & _RANDOM:
        yield StructureNote("random-operators", "error", f"the file draws by {', '.join(sorted(used & _RANDOM))}")
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [item.name for item in model.graph.input if item.name not in stored]
    if len(inputs) != 1 or len(model.graph.output) != 1:
        yield StructureNote(
            "more-inputs-or-outputs", "error",
            f"the file has {len(inputs)} inputs and {len(model.graph.output)} outputs; a classifier has one of each",
        )  # fmt: skip
    external = [tensor.name for tensor in model.graph.initializer if tensor.data_location]
    if external:
        yield StructureNote("external-data", "warning", f"{len(external)} tensors are kept in other files")
    read = {name for node in model.graph.node for name in node.input} | {item.name for item in model.graph.output}
    idle = sorted(stored - read)
    if idle:
        shown = ", ".join(idle[:_MOST_NAMED])
        yield StructureNote("unread-tensors", "info", f"{len(idle)} stored tensors are read by no operator: {shown}")
