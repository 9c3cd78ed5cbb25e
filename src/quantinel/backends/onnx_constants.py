"""The stored tensors of an ONNX file as arrays."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from quantinel.errors import VerificationError

Array = np.ndarray[Any, np.dtype[Any]]


def read_constants(model: onnx.ModelProto) -> dict[str, Array]:
    """The initializers of a file by name.

    Raises:
        VerificationError: one cannot be read, or two have one name.
    """
    constants: dict[str, Array] = {}
    for tensor in model.graph.initializer:
        if tensor.name in constants:
            raise VerificationError(f"the file holds two tensors {tensor.name!r}; harden the model again")
        constants[tensor.name] = read_tensor(tensor)
    return constants


def read_tensor(tensor: onnx.TensorProto) -> Array:
    """One stored tensor.

    Raises:
        VerificationError: its bytes do not fit its type and shape.
    """
    try:
        return numpy_helper.to_array(tensor)
    except Exception as error:  # it raises whatever the bytes make it raise
        raise VerificationError(f"tensor {tensor.name!r} cannot be read; harden the model again") from error


def fingerprint(array: Array) -> str:
    """Type, shape and SHA-256 of the values, e.g. ``int8[16, 3, 3, 3] 5f70...``."""
    values = np.ascontiguousarray(array).tobytes()
    return f"{array.dtype}{list(array.shape)} {hashlib.sha256(values).hexdigest()}"


def external_tensor(model: onnx.ModelProto) -> str | None:
    """Name of a tensor whose values lie in another file, at any depth; None if there is none."""
    graphs: list[onnx.GraphProto | onnx.FunctionProto] = [model.graph, *model.functions]
    while graphs:
        graph = graphs.pop()
        tensors, sparse = [], []
        if isinstance(graph, onnx.GraphProto):
            tensors += graph.initializer
            sparse += graph.sparse_initializer
        for attribute in (attribute for node in graph.node for attribute in node.attribute):
            graphs += [attribute.g, *attribute.graphs]
            tensors += [attribute.t, *attribute.tensors]
            sparse += [attribute.sparse_tensor, *attribute.sparse_tensors]
        tensors += [part for item in sparse for part in (item.values, item.indices)]
        for tensor in tensors:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                return str(tensor.name)
    return None
