"""Run an ONNX file with ONNX Runtime, and see what it really executes."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor

from quantinel.backends.onnx_qdq import INPUT_NAME
from quantinel.data.images import as_float
from quantinel.errors import VerificationError, first_line

_INTEGER_OPERATORS = frozenset(
    {
        "QLinearConv", "QGemm", "QLinearMatMul", "MatMulInteger", "ConvInteger", "MatMulIntegerToFloat",
        "DynamicQuantizeMatMul", "QLinearAdd",
    }
)  # fmt: skip
"""Operators of ONNX Runtime that multiply in integers."""


class Session:
    """An ONNX Runtime session on the CPU.

    Args:
        model: path or serialized bytes of the file.
        optimise: False switches graph optimisation off: float arithmetic between Q and DQ nodes.
        save_optimised: where to write the graph as it will be executed.
        threads: of this session; None for one per core.

    Raises:
        VerificationError: the runtime refuses the file.
    """

    def __init__(
        self,
        model: Path | bytes,
        *,
        optimise: bool = True,
        save_optimised: Path | None = None,
        threads: int | None = None,
    ) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        level = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_ALL if optimise else level.ORT_DISABLE_ALL
        if save_optimised is not None:
            options.optimized_model_filepath = str(save_optimised)
        source = model if isinstance(model, bytes) else str(model)
        try:
            self._session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the binding raises its own classes, all derived from Exception
            raise VerificationError(
                f"ONNX Runtime refuses the file: {first_line(error)[:200]}; make it again"
            ) from error
        self.input_shape, self.num_classes = _interface(self._session)

    def logits(
        self, images: Tensor, batch_size: int = 250, progress: Callable[[int, int], None] | None = None
    ) -> Tensor:
        """Logits (N, K) of uint8 images (N, C, H, W).

        Raises:
            VerificationError: the runtime cannot run the file on them, or the answers have another shape.
        """
        parts = []
        for start in range(0, len(images), batch_size):
            batch = as_float(images[start : start + batch_size]).numpy()
            try:
                answers = np.asarray(self._session.run(None, {INPUT_NAME: batch})[0])
            except Exception as error:  # as above
                raise VerificationError(
                    f"ONNX Runtime cannot run the file: {first_line(error)[:200]}; make it again"
                ) from error
            if answers.shape != (len(batch), self.num_classes):
                raise VerificationError(
                    f"the file answers {len(batch)} images with shape {answers.shape} instead of "
                    f"({len(batch)}, {self.num_classes}); make it again"
                )
            parts.append(torch.from_numpy(answers))
            if progress is not None:
                progress(min(start + batch_size, len(images)), len(images))
        return torch.cat(parts)


def _interface(session: onnxruntime.InferenceSession) -> tuple[tuple[int, ...], int]:
    """Shape of an image and number of classes of a file with the interface that the writer gives it."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) == 1 and len(outputs) == 1:
        (images,), (answers,) = inputs, outputs
        sizes = [*images.shape[1:], *answers.shape[1:]]
        shapes = len(images.shape) == 4 and len(answers.shape) == 2 and all(isinstance(size, int) for size in sizes)
        if images.name == INPUT_NAME and shapes and images.type == answers.type == "tensor(float)":
            return tuple(images.shape[1:]), int(answers.shape[1])
    raise VerificationError(
        f"the file does not have exactly one input {INPUT_NAME!r} (N, C, H, W) and one output (N, K), both float32; "
        "make it again"
    )


@dataclass(frozen=True)
class Execution:
    """What ONNX Runtime made of a file.

    Attributes:
        operators: how often each operator occurs in the optimised graph.
        by_layer: layer name -> operator that consumes its integers; None where that operator works in float.
    """

    operators: dict[str, int]
    by_layer: dict[str, str | None]

    @property
    def integer_layers(self) -> int:
        """Layers that are multiplied in integers."""
        return sum(operator is not None for operator in self.by_layer.values())


def execution(model: Path | bytes, layers: list[str]) -> Execution:
    """Let ONNX Runtime optimise the file and find each layer's weight in the result.

    The optimised graph names initializers as the file does, so a layer is recognised by its
    ``<name>.weight_codes``; renamed copies (transposed or repacked ones) keep that name as a prefix.

    Args:
        model: path or bytes of the file.
        layers: names of the quantized layers.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimised.onnx"
        Session(model, save_optimised=path)
        graph = onnx.load(path).graph
    producers = {output: node for node in graph.node for output in node.output}
    by_layer: dict[str, str | None] = dict.fromkeys(layers)
    for node in graph.node:
        if node.op_type not in _INTEGER_OPERATORS:
            continue
        for name in node.input:
            origin = _origin(name, producers)
            layer = _layer_of(origin, by_layer)
            if layer is not None:
                by_layer[layer] = node.op_type
    return Execution(dict(Counter(node.op_type for node in graph.node)), by_layer)


def _origin(name: str, producers: dict[str, Any]) -> str:
    """Follow layout operators back to the stored tensor."""
    while name in producers and producers[name].op_type in ("Transpose", "Reshape", "Identity"):
        name = producers[name].input[0]
    return name


def _layer_of(initializer: str, layers: dict[str, str | None]) -> str | None:
    marker = ".weight_codes"
    if marker not in initializer:
        return None
    name = initializer[: initializer.index(marker)]
    return name if name in layers else None


def runtime_name() -> str:
    """Runtime and version, for reports."""
    return f"onnxruntime {onnxruntime.__version__}"
