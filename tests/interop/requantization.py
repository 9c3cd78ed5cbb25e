"""A purified float network, quantized again by ONNX Runtime's own tool."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from quantinel.data.images import ImageSet
from quantinel.quantization.quantized_model import QuantizedModel

SETTINGS: dict[str, dict[str, Any]] = {
    "per channel, QInt8": {"per_channel": True, "weight_type": QuantType.QInt8},
    "per channel, QUInt8": {"per_channel": True, "weight_type": QuantType.QUInt8},
    "per channel, QInt8, reduce_range": {"per_channel": True, "weight_type": QuantType.QInt8, "reduce_range": True},
    "per tensor, QInt8": {"per_channel": False, "weight_type": QuantType.QInt8},
}
"""Settings of ``quantize_static``; the first is the one that keeps the integers."""


class _Reader(CalibrationDataReader):
    def __init__(self, images: ImageSet) -> None:
        self.batches: Iterator[np.ndarray] = (batch.numpy() for batch in images.batches(64))

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.batches, None)
        return None if batch is None else {"images": batch}


def export_purified(model: QuantizedModel, path: Path) -> None:
    """Write the folded float network with W := scale * codes as an ordinary float ONNX file."""
    module = copy.deepcopy(model.graph.module)
    for layer in model.layers.values():
        module.get_buffer(layer.layer.weight).copy_(layer.weight())
    example = torch.rand(2, *model.graph.input_shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (example,), str(path), input_names=["images"], dynamo=True, verbose=False, external_data=False,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )  # fmt: skip


def requantized(floating: Path, images: ImageSet, setting: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Codes (zero point subtracted) and scales that ``quantize_static`` chooses, layer by layer in execution order.

    Args:
        floating: float ONNX file.
        images: for the tool's own activation calibration.
        setting: key of `SETTINGS`.
    """
    path = floating.with_name("requantized.onnx")
    logging.getLogger().setLevel(logging.ERROR)  # the tool advises pre-processing at warning level
    quantize_static(
        floating, path, _Reader(images), quant_format=QuantFormat.QDQ, activation_type=QuantType.QUInt8,
        **SETTINGS[setting],
    )  # fmt: skip
    return _weights(onnx.load(path).graph)


def _weights(graph: onnx.GraphProto) -> list[tuple[np.ndarray, np.ndarray]]:
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    producers = {output: node for node in graph.node for output in node.output}
    found = []
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm"):
            continue
        dequantize = producers[node.input[1]]
        codes, scale, zero = (tensors[name] for name in dequantize.input)
        axis = next((item.i for item in dequantize.attribute if item.name == "axis"), 0)
        shape = [-1 if index == axis % codes.ndim else 1 for index in range(codes.ndim)] if zero.ndim else []
        centred = codes.astype(np.int16) - zero.astype(np.int16).reshape(shape)
        transposed = node.op_type == "Gemm" and not any(a.name == "transB" and a.i for a in node.attribute)
        found.append((centred.T if transposed else centred, scale.reshape(-1)))
    return found


def kept_percent(model: QuantizedModel, weights: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Percentage of the audited codes that the tool reproduced."""
    equal = total = 0
    for layer, (codes, _) in zip(model.layers.values(), weights, strict=True):
        assert codes.shape == tuple(layer.codes.shape)
        equal += int((codes == layer.codes.numpy()).sum())
        total += codes.size
    return 100.0 * equal / total
