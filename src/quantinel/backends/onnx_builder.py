"""A small ONNX graph under construction: nodes, initializers, unique names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
"""LayerNormalization needs 17; 8-bit QuantizeLinear and DequantizeLinear with an axis need 13."""
IR_VERSION = 8


class GraphBuilder:
    """Collects nodes and initializers; names of values are the names of the traced nodes where possible."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self._counter = 0

    def name(self, hint: str) -> str:
        """A fresh value name."""
        self._counter += 1
        return f"{hint}_{self._counter}"

    def constant(self, value: Any, dtype: Any = np.float32, name: str | None = None) -> str:
        """Store an array as an initializer and return its name."""
        name = name or self.name("constant")
        array = np.asarray(value, dtype=dtype)
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
        return name

    def add(
        self,
        operator: str,
        inputs: Sequence[str],
        output: str | None = None,
        outputs: int = 1,
        **attributes: Any,
    ) -> str:
        """Append a node with one output and return the output's name."""
        return self.add_many(operator, inputs, outputs, output, **attributes)[0]

    def add_many(
        self, operator: str, inputs: Sequence[str], outputs: int, output: str | None = None, **attributes: Any
    ) -> list[str]:
        """Append a node with several outputs and return their names."""
        base = output or self.name(operator.lower())
        names = [base] if outputs == 1 else [f"{base}_{index}" for index in range(outputs)]
        attributes = {key: value for key, value in attributes.items() if value is not None}
        self.nodes.append(helper.make_node(operator, list(inputs), names, name=f"{operator}_{base}", **attributes))
        return names

    def model(
        self,
        name: str,
        input_name: str,
        input_shape: Sequence[int],
        output_name: str,
        classes: int,
        producer: str,
    ) -> onnx.ModelProto:
        """Finish: one float image input (batch, C, H, W), one float output (batch, classes)."""
        graph = helper.make_graph(
            self.nodes,
            name,
            [helper.make_tensor_value_info(input_name, TensorProto.FLOAT, ["batch", *input_shape])],
            [helper.make_tensor_value_info(output_name, TensorProto.FLOAT, ["batch", classes])],
            list(self.initializers.values()),
        )
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="quantinel",
            producer_version=producer,
        )
