"""Operators, inputs and domains of a shipped file that the float model gives no reason for.

A backdoor needs no odd integers where a file may hold a branch of its own: a detector of the trigger and a switch. The
file's operators, without its rounding of activations, are held against those that this project's own writer gives the
same float model. A branch has to join the rest or to decide: every operator with two or more computed inputs counts,
whatever its name, and more of them than the model needs are a finding. Fewer of them, and other operators that the
model does not have, are named as not compared: exporters spell equal functions differently.

A branch can also run through the same operators as the rest: a product that widens the images, numbers that lie beyond
a step for one column alone, a product that adds that column to the others. So products, arithmetic with stored numbers,
upper bounds and changes of type count as well, wherever their numbers come from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import onnx

from quantinel.backends.artefact_notes import FileNotes, StructureNote
from quantinel.backends.onnx_dataflow import CONTROL, RANDOM, constants, shape_values
from quantinel.backends.onnx_qdq import PROFILES, to_onnx
from quantinel.backends.onnx_unrounded import RUNTIME_DOMAIN, unrounded
from quantinel.errors import NotAssessable, UnsupportedError
from quantinel.model.graph import FloatGraph
from quantinel.quantization.placement import Placement
from quantinel.quantization.quantized_model import QuantizedLayer, QuantizedModel
from quantinel.quantization.ranges import weight_scales
from quantinel.quantization.rounding import nearest_codes
from quantinel.quantization.scheme import parse_scheme

_JOINING = {"Sum": "Add"}
_PRODUCT, _ARITHMETIC = "Conv, Gemm or MatMul with stored numbers", "Add, Sub, Mul or Div with stored numbers"
_FAMILIES = {
    "GlobalAveragePool": "ReduceMean", "AveragePool": "ReduceMean", "GlobalMaxPool": "MaxPool", "ReduceMax": "MaxPool",
    "Max": "Relu", "Min": "Clip", "Rsqrt": "Reciprocal", **dict.fromkeys(["Conv", "Gemm", "MatMul"], _PRODUCT),
    **dict.fromkeys(["Add", "Sub", "Mul", "Div"], _ARITHMETIC),
}  # fmt: skip
"""Names for one thing among which exporters choose, where one input is computed."""
_ANY_NUMBER = frozenset([
    "Identity", "Constant", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Pad", "Slice", "Split",
    "Expand",
])  # fmt: skip
"""With one computed input: layout."""
_SHAPED = frozenset(
    ["Reshape", "Expand", "Slice", "Resize", "Upsample", "Tile", "Pad", "Split", "Squeeze", "Unsqueeze"]
)
"""Operators that may read a shape beside a value."""
_OF_SHAPES = ("Shape", "Size")
_DECIDING = frozenset([
    "Where", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Not", "Xor", "Sign", "ArgMax",
    "ArgMin", "TopK", "NonZero", "ScatterND", "ScatterElements", "Scatter", "Compress", "Unique", "Mod", "Hardmax",
    "IsNaN", "IsInf", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "OneHot", "QLinearWhere", "ThresholdedRelu", "Shrink",
])  # fmt: skip
_STANDARD = ("", "ai.onnx")
_MOST_NAMED = 5


def structure_notes(graph: FloatGraph, model: onnx.ModelProto) -> FileNotes:
    """Compare the file's structure with the float model's.

    Args:
        graph: folded float network.
        model: the shipped file, checked.
    """
    found = FileNotes(list(_foreign(model)))
    try:
        file = unrounded(model)
        joined, plain = _counts(file.model, file.scaling)
        wanted_joins, wanted = _counts(_reference(graph))
    except (UnsupportedError, NotAssessable) as error:
        found.not_assessed.append(f"operators were not compared with the float model's: {error}")
        return found
    more = joined - wanted_joins
    for name in sorted(more):
        found.notes.append(
            StructureNote(
                "operators-added", "error" if name in _DECIDING else "warning",
                f"{more[name]} more {name} on computed values than the float model has "
                f"({joined[name]} instead of {wanted_joins[name]}); a hidden branch needs such operators; some "
                "exporters spell others so",
            )
        )  # fmt: skip
    for name in sorted(wanted_joins - joined):
        found.not_assessed.append(
            f"the file joins computed values by {joined[name]} {name}, the float model by {wanted_joins[name]}; what "
            "it does instead was not compared"
        )
    for name in sorted(plain - wanted):
        found.not_assessed.append(
            f"the file has {plain[name]} {name} on computed values, the float model {wanted[name]}: operators that "
            "were not compared"
        )
    return found


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


def _counts(model: onnx.ModelProto, scaling: frozenset[str] = frozenset()) -> tuple[Counter[str], Counter[str]]:
    """Operators that join computed values or decide by one, and the others on computed values, by family.

    The bias of a product counts as the addition that other exporters put behind it.
    """
    constant = constants(model)
    shapes = shape_values(model, constant)
    joins: Counter[str] = Counter()
    others: Counter[str] = Counter()
    for node in model.graph.node:
        name = node.op_type
        given = [item for item in node.input if item and item not in constant]
        images = [item for item in given if item not in shapes]
        reads = images if name in _SHAPED else given
        if not images or name in _OF_SHAPES:
            continue
        made = not scaling.isdisjoint(node.output)
        if name in _DECIDING:
            joins[name] += 1
        elif len(reads) > 1:
            joins[_JOINING.get(name, name)] += len(reads) - 1
        elif (family := _family(node, images[0])) is not None and (family != _ARITHMETIC or not made):
            others[family] += 1
            others[_ARITHMETIC] += family == _PRODUCT and any(node.input[2:])
    return joins, others


def _family(node: onnx.NodeProto, computed: str) -> str | None:
    """What an operator with one computed input counts as; None for what only moves numbers."""
    name, position = node.op_type, list(node.input).index(computed)
    if name == "Cast":
        floats = all(item.i == onnx.TensorProto.FLOAT for item in node.attribute if item.name == "to")
        return None if floats else name
    if name == "Dropout":
        return name if any(node.input[2:]) else None  # its switch for training
    if name == "Clip":
        return name if any(node.input[2:]) else "Relu"
    if name == "Div" and position == 1:
        return "Reciprocal"
    return None if name in _ANY_NUMBER else _FAMILIES.get(name, name)


def _foreign(model: onnx.ModelProto) -> Iterator[StructureNote]:
    """What no float classifier needs."""
    domains: dict[str, set[str]] = {}
    for node in model.graph.node:
        if node.domain not in _STANDARD:
            domains.setdefault(node.domain, set()).add(node.op_type)
    for domain, names in sorted(domains.items()):
        known = domain == RUNTIME_DOMAIN
        yield StructureNote(
            "custom-domain", "info" if known else "error",
            f"operators {', '.join(sorted(names)[:_MOST_NAMED])} of the domain {domain!r}"
            + (", ONNX Runtime's own" if known else ": their code is not in the file and was not examined"),
        )  # fmt: skip
    if model.functions:
        defined = ", ".join(function.name for function in list(model.functions)[:_MOST_NAMED])
        yield StructureNote("local-functions", "error", f"the file defines operators of its own: {defined}")
    used = {node.op_type for node in model.graph.node}
    if used & CONTROL:
        yield StructureNote("control-flow", "error", f"the file branches by {', '.join(sorted(used & CONTROL))}")
    if used & RANDOM:
        yield StructureNote("random-operators", "error", f"the file draws by {', '.join(sorted(used & RANDOM))}")
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
