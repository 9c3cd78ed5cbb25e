"""The fields of an ONNX file, whatever they mean: what cannot be read, and what no emitted file has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import onnx

_WRITTEN: Mapping[str, frozenset[str]] = {
    name: frozenset(fields.split())
    for name, fields in {
        "ModelProto": "ir_version opset_import producer_name producer_version graph",
        "OperatorSetIdProto": "domain version",
        "GraphProto": "node name initializer input output",
        "NodeProto": "input output name op_type attribute",
        "AttributeProto": "name type f i s t floats ints strings",
        "TensorProto": "dims data_type name raw_data",
        "ValueInfoProto": "name type",
        "TypeProto": "tensor_type",
        "Tensor": "elem_type shape",
        "TensorShapeProto": "dim",
        "Dimension": "dim_value dim_param",
    }.items()
}
"""Fields that the writer of this project sets, by kind of message."""


def check_fields(model: onnx.ModelProto) -> None:
    """Refuse what the checker lets through and nothing else here can read.

    Raises:
        ValueError: a name that is no text, which protobuf hands out as bytes; or an operator outside of a function
            that takes an attribute from one.
    """
    for message in _messages(model):
        for field, value in message.ListFields():
            if field.type == field.TYPE_STRING:
                for item in value if field.is_repeated else [value]:
                    if not isinstance(item, str):
                        raise ValueError(f"{field.full_name} is no text")
    for message in _messages(model.graph):
        if isinstance(message, onnx.AttributeProto) and message.ref_attr_name:
            raise ValueError(f"the attribute {message.name} is that of a function")


def unwritten_field(model: onnx.ModelProto) -> str | None:
    """Name of a field that no emitted file has, known to ONNX or not; None if there is none.

    What such a field means to a runtime is not compared: shapes that a file claims for its values, preparations of
    images, or whatever a later version of ONNX adds.
    """
    for message in _messages(model):
        kind = message.DESCRIPTOR.name
        for field, _ in message.ListFields():
            if field.name not in _WRITTEN.get(kind, ()):
                return f"{kind}.{field.name}"
    known = onnx.ModelProto()
    known.CopyFrom(model)
    known.DiscardUnknownFields()
    return None if known.ByteSize() == model.ByteSize() else "that this version of ONNX does not know"


def _messages(message: Any) -> Iterator[Any]:
    """A message and all messages in it."""
    pending = [message]
    while pending:
        message = pending.pop()
        yield message
        for field, value in message.ListFields():
            if field.type == field.TYPE_MESSAGE:
                pending.extend(value if field.is_repeated else [value])
