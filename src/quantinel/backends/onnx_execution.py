"""Run any ONNX classifier on images, however its input is laid out, and say why where that is not possible."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper
from torch import Tensor

from quantinel.backends.onnx_constants import Array
from quantinel.errors import NotAssessable, first_line

BATCH = 64
"""Images of one run; ranges that are measured at run time are those of a batch."""


class Classifier:
    """An ONNX Runtime session on the CPU for a file of unknown origin.

    Args:
        model: one input (N, C, H, W) or (N, H, W, C), one output (N, K).
        input_shape: (C, H, W) of the images.
        ranges: names of values whose smallest and largest numbers are wanted.
        optimise: False runs the operators one by one, as they are written: optimisation rounds the activations of
            some products with integer weights.

    Raises:
        NotAssessable: the runtime refuses the file, or its input is of another kind.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        input_shape: tuple[int, int, int],
        ranges: Iterable[str] = (),
        optimise: bool = True,
    ) -> None:
        names = list(dict.fromkeys(ranges))
        self.ranges = dict.fromkeys(names, (math.inf, -math.inf))
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        level = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_ALL if optimise else level.ORT_DISABLE_ALL
        try:
            self._session = onnxruntime.InferenceSession(
                _with_ranges(model, names).SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the binding raises its own classes, all derived from Exception
            raise NotAssessable(f"ONNX Runtime refuses it: {first_line(error)[:160]}") from error
        given = self._session.get_inputs()
        if len(given) != 1 or given[0].type != "tensor(float)" or len(given[0].shape) != 4:
            raise NotAssessable("it does not take one float32 batch of images")
        self._input, (first, *more) = given[0].name, [item.name for item in self._session.get_outputs()]
        self._outputs = [first, *more[len(more) - 2 * len(names) :]]
        batch, *shape = given[0].shape
        self._batch = batch if isinstance(batch, int) and batch > 0 else None
        channels, height, width = input_shape
        self._last = _fits(shape, (height, width, channels)) and not _fits(shape, input_shape)
        if not self._last and not _fits(shape, input_shape):
            raise NotAssessable(f"it takes images of shape {tuple(shape)}, the model of {input_shape}")

    def logits(self, images: Tensor) -> Tensor:
        """Answers (N, K) for float32 images (N, C, H, W).

        Raises:
            NotAssessable: the runtime fails, or the answers have no such shape.
        """
        size = self._batch or BATCH
        parts = [self._run(images[start : start + size], size) for start in range(0, len(images), size)]
        return torch.from_numpy(np.concatenate(parts))

    def _run(self, images: Tensor, size: int) -> Array:
        batch = images.numpy()
        missing = size - len(batch) if self._batch else 0
        batch = np.concatenate([batch, np.repeat(batch[-1:], missing, 0)]) if missing else batch
        batch = batch.transpose(0, 2, 3, 1) if self._last else batch
        try:
            answers, *ends = self._session.run(self._outputs, {self._input: np.ascontiguousarray(batch)})
        except Exception as error:  # as above
            raise NotAssessable(f"ONNX Runtime fails while it runs: {first_line(error)[:160]}") from error
        for index, (name, (low, high)) in enumerate(self.ranges.items()):
            self.ranges[name] = (min(low, float(ends[2 * index])), max(high, float(ends[2 * index + 1])))
        found = np.asarray(answers)
        if found.ndim != 2 or len(found) != len(batch) or found.dtype != np.float32:
            raise NotAssessable("its answers are not one row of float32 numbers for every image")
        return found[: len(images)]


def _with_ranges(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    if not names:
        return model
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for index, name in enumerate(names):
        for operator in ("ReduceMin", "ReduceMax"):
            output = f"range_{index}_{operator}"
            made.graph.node.append(helper.make_node(operator, [name], [output], keepdims=0))
            made.graph.output.append(helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, []))
    return made


def _fits(shape: list[object], wanted: tuple[int, ...]) -> bool:
    return all(not isinstance(size, int) or size == other for size, other in zip(shape, wanted, strict=True))
