"""What an emitted file computes, as plain data: every operator with its attributes, its inputs and its constants.

The audited integers say what is multiplied; this says that nothing else happens. Values have no names here, only the
number of the operator that computes them, and constants are known by their contents.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import Any

import onnx

from quantinel.backends.onnx_constants import Array, fingerprint, read_constants, read_tensor
from quantinel.backends.onnx_fields import unwritten_field

_STANDARD = ("", "ai.onnx")
_PLAIN = frozenset(
    getattr(onnx.AttributeProto, name) for name in ("FLOAT", "INT", "STRING", "TENSOR", "FLOATS", "INTS", "STRINGS")
)
"""Attributes that are values; the others hold operators or types."""


@dataclass(frozen=True)
class Operator:
    """One operator.

    Attributes:
        operator: its type.
        inputs: for each one the name of the graph's input, "#i.k" for the k-th output of operator i, the fingerprint
            of a constant, or "" where it is left out.
        attributes: "name=value", sorted; one that is given twice stands here twice.
        outputs: how many it has.
    """

    operator: str
    inputs: list[str]
    attributes: list[str]
    outputs: int


@dataclass(frozen=True)
class EmittedGraph:
    """A whole file.

    Attributes:
        operators: in the file's order.
        frame: versions, the input, the output with the value that it names, and the number of constants.
    """

    operators: tuple[Operator, ...]
    frame: dict[str, str]

    def to_json(self) -> str:
        """As `from_json` reads it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> EmittedGraph:
        """Read what `to_json` wrote.

        Raises:
            ValueError, TypeError, KeyError, AttributeError: it is something else.
        """
        stored = json.loads(text)
        frame = {str(key): str(value) for key, value in stored["frame"].items()}
        return cls(tuple(Operator(**item) for item in stored["operators"]), frame)


def describe(model: onnx.ModelProto) -> EmittedGraph:
    """Describe a file that `refusal` has nothing against.

    Raises:
        VerificationError: a stored tensor cannot be read.
    """
    constants = read_constants(model)
    values = {name: fingerprint(array) for name, array in constants.items()}
    values |= {item.name: item.name for item in model.graph.input} | {"": ""}
    operators = []
    for index, node in enumerate(model.graph.node):
        inputs = [values.get(name, "not computed before") for name in node.input]
        attributes = sorted(f"{item.name}={_text(item)}" for item in node.attribute)
        operators.append(Operator(node.op_type, inputs, attributes, len(node.output)))
        values |= {name: f"#{index}.{position}" for position, name in enumerate(node.output) if name}
    return EmittedGraph(tuple(operators), _frame(model, constants, values))


def graph_problem(model: onnx.ModelProto, audited: EmittedGraph) -> str | None:
    """How a file differs from the one that was audited, first difference first; None if it computes the same.

    Raises:
        VerificationError: a stored tensor cannot be read.
    """
    refused = refusal(model)
    if refused is not None:
        return refused
    found = describe(model)
    for index, (seen, expected) in enumerate(zip_longest(found.operators, audited.operators)):
        if seen == expected:
            continue
        if seen is None:
            return f"operator {index} ({expected.operator}) is missing"
        name = f"operator {index} ({seen.operator} {model.graph.node[index].name[:80]!r})"
        if expected is None:
            return f"{name} was added"
        if seen.operator != expected.operator:
            return f"{name} takes the place of {expected.operator}"
        part = next(
            part for part in ("inputs", "attributes", "outputs") if getattr(seen, part) != getattr(expected, part)
        )
        return f"the {part} of {name} are not the audited ones"
    keys = sorted(key for key in found.frame | audited.frame if found.frame.get(key) != audited.frame.get(key))
    if keys:
        return f"{keys[0]}: {found.frame.get(keys[0])}, audited {audited.frame.get(keys[0])}"
    return None


def refusal(model: onnx.ModelProto) -> str | None:
    """What no emitted file has, and what would escape a list of operators; None if there is nothing of the kind."""
    return next(_refusals(model), None)


def _refusals(model: onnx.ModelProto) -> Iterator[str]:
    graph = model.graph
    if model.functions:
        yield f"the file defines functions of its own ({model.functions[0].name[:80]!r})"
    if model.training_info:
        yield "the file holds training information"
    if graph.sparse_initializer:
        yield "the file holds sparse constants"
    if len(graph.input) != 1 or len(graph.output) != 1:
        yield f"the file has {len(graph.input)} inputs and {len(graph.output)} outputs instead of one of each"
    constants = {tensor.name for tensor in graph.initializer}
    for item in graph.input:
        if item.name in constants:
            yield f"the constant {item.name[:80]!r} is an input of the file, so that whoever runs it can replace it"
    for index, node in enumerate(graph.node):
        if node.domain not in _STANDARD:
            yield f"operator {index} ({node.op_type}) is of the domain {node.domain[:80]!r}"
        if any(item.type not in _PLAIN for item in node.attribute):
            yield f"operator {index} ({node.op_type}) holds operators of its own"
    unwritten = unwritten_field(model)
    if unwritten is not None:
        yield f"the file has a field that no emitted file has ({unwritten})"


def _text(attribute: onnx.AttributeProto) -> str:
    value: Any = onnx.helper.get_attribute_value(attribute)
    return fingerprint(read_tensor(value)) if isinstance(value, onnx.TensorProto) else repr(value)


def _frame(model: onnx.ModelProto, constants: Mapping[str, Array], values: Mapping[str, str]) -> dict[str, str]:
    graph = model.graph
    opsets = sorted(f"{item.domain or 'ai.onnx'} {item.version}" for item in model.opset_import)
    return {
        "IR version": str(model.ir_version),
        "operator sets": ", ".join(opsets),
        "input": ", ".join(_interface(item) for item in graph.input),
        "output": ", ".join(f"{_interface(item)} from {values.get(item.name)}" for item in graph.output),
        "number of constants": str(len(constants)),
    }


def _interface(value: onnx.ValueInfoProto) -> str:
    """Name, type and shape, e.g. ``images FLOAT[batch, 3, 32, 32]``."""
    tensor = value.type.tensor_type
    types = onnx.TensorProto.DataType
    kind = types.Name(tensor.elem_type) if tensor.elem_type in types.values() else "unknown"
    shape = ", ".join(item.dim_param or str(item.dim_value) for item in tensor.shape.dim)
    return f"{value.name} {kind}[{shape}]"
