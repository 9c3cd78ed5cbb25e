"""Converters of pooling with uneven windows, resizing and transposed convolution; see `onnx_operators`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import fx

from quantinel.backends.onnx_builder import GraphBuilder
from quantinel.backends.onnx_operators import Arguments, converts, input_rank, input_shape, pair, rank
from quantinel.errors import UnsupportedError


def _per_axis(value: Any, count: int) -> list[int]:
    return pair(value)[:count]


def adaptive_windows(extent: int, out: int) -> NDArray[np.float64]:
    """Averaging matrix (out, extent) of adaptive pooling: window i covers floor(i e / o) to ceil((i + 1) e / o)."""
    matrix = np.zeros((out, extent))
    for index in range(out):
        start, stop = index * extent // out, -(-(index + 1) * extent // out)
        matrix[index, start:stop] = 1.0 / (stop - start)
    return matrix


def average_windows(
    extent: int, out: int, kernel: int, stride: int, padding: int, include_pad: bool, divisor: float | None
) -> NDArray[np.float64]:
    """Averaging matrix (out, extent) of ordinary pooling along one axis, cut-off windows included."""
    matrix = np.zeros((out, extent))
    for index in range(out):
        first = index * stride - padding
        padded = min(first + kernel, extent + padding) - first
        start, stop = max(first, 0), min(first + kernel, extent)
        matrix[index, start:stop] = 1.0 / (divisor or (padded if include_pad else stop - start))
    return matrix


def weighted_sum(b: GraphBuilder, x: str, matrices: list[NDArray[np.float64]]) -> str:
    """Multiply the last axes of ``x`` by one matrix (out, in) each: separable pooling."""
    if len(matrices) == 1:
        return b.add("MatMul", [x, b.constant(matrices[0].T)])
    return b.add("MatMul", [b.constant(matrices[0]), b.add("MatMul", [x, b.constant(matrices[1].T)])])


def _pool_attributes(a: Arguments) -> dict[str, Any]:
    kernel = pair(a["kernel_size"])
    stride = pair(a["stride"]) if a["stride"] else kernel
    padding = pair(a["padding"])
    return {
        "kernel_shape": kernel, "strides": stride, "pads": [*padding, *padding], "ceil_mode": int(a["ceil_mode"]),
    }  # fmt: skip


@converts("max_pool2d")
def _max_pool(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    return b.add("MaxPool", [a["self"]], dilations=pair(a["dilation"]), **_pool_attributes(a))


@converts("avg_pool2d")
def _average_pool(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    if a["divisor_override"] is not None or a["ceil_mode"]:
        return weighted_sum(b, a["self"], _average_matrices(a, node))
    return b.add("AveragePool", [a["self"]], count_include_pad=int(a["count_include_pad"]), **_pool_attributes(a))


@converts("adaptive_avg_pool2d")
def _adaptive_pool(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    target = pair(a["output_size"])
    if target == [1, 1]:
        return b.add("GlobalAveragePool", [a["self"]])
    size = [int(item) for item in input_shape(node)[-2:]]
    if any(extent % out for extent, out in zip(size, target, strict=True)):
        return weighted_sum(b, a["self"], [adaptive_windows(*sizes) for sizes in zip(size, target, strict=True)])
    kernel = [extent // out for extent, out in zip(size, target, strict=True)]
    return b.add("AveragePool", [a["self"]], kernel_shape=kernel, strides=kernel)


def _average_matrices(a: Arguments, node: fx.Node) -> list[NDArray[np.float64]]:
    """Windows that are cut off at the border, or divided by a number of their own: ONNX Runtime counts otherwise."""
    kernel, padding = pair(a["kernel_size"]), pair(a["padding"])
    stride = pair(a["stride"]) if a["stride"] else kernel
    divisor = a["divisor_override"]
    matrices = []
    for axis in range(2):
        extent, out = int(input_shape(node)[axis - 2]), int(node.meta["val"].shape[axis - 2])
        share = None if divisor is None else float(divisor if axis == 0 else 1)
        matrices.append(
            average_windows(extent, out, kernel[axis], stride[axis], padding[axis], a["count_include_pad"], share)
        )
    return matrices


@converts("adaptive_max_pool1d", "adaptive_max_pool2d")
def _adaptive_max_pool(b: GraphBuilder, a: Arguments, node: fx.Node) -> list[str]:
    if any(reader.args[1] != 0 for reader in node.users):
        raise UnsupportedError(f"the model uses the indices that {node.target} returns; only its values are supported")
    axes = 1 if "1d" in str(node.target) else 2
    size = [int(item) for item in input_shape(node)[-axes:]]
    target = _per_axis(a["output_size"], axes)
    if target == [1] * axes:
        return [b.add("GlobalMaxPool", [a["self"]]), ""]
    if any(extent % out for extent, out in zip(size, target, strict=True)):
        raise UnsupportedError(
            f"{node.target} from {size} to {target} has uneven windows, which ONNX cannot express; use an output "
            "size that divides the feature map"
        )
    kernel = [extent // out for extent, out in zip(size, target, strict=True)]
    return [b.add("MaxPool", [a["self"]], kernel_shape=kernel, strides=kernel), ""]


@converts("max_pool2d_with_indices")
def _max_pool_with_indices(b: GraphBuilder, a: Arguments, node: fx.Node) -> list[str]:
    if any(reader.args[1] != 0 for reader in node.users):
        raise UnsupportedError(f"the model uses the indices that {node.target} returns; only its values are supported")
    return [_max_pool(b, a, node), ""]


@converts("max_pool1d")
def _max_pool1d(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    kernel, padding, dilation = (_per_axis(a[key], 1) for key in ("kernel_size", "padding", "dilation"))
    stride = _per_axis(a["stride"], 1) if a["stride"] else kernel
    return b.add(
        "MaxPool", [a["self"]], kernel_shape=kernel, strides=stride, pads=padding * 2, dilations=dilation,
        ceil_mode=int(a["ceil_mode"]),
    )  # fmt: skip


@converts("avg_pool1d")
def _average_pool1d(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    extent, out = int(input_shape(node)[-1]), int(node.meta["val"].shape[-1])
    kernel, padding = _per_axis(a["kernel_size"], 1)[0], _per_axis(a["padding"], 1)[0]
    stride = _per_axis(a["stride"], 1)[0] if a["stride"] else kernel
    include_pad = bool(a["count_include_pad"])
    return weighted_sum(b, a["self"], [average_windows(extent, out, kernel, stride, padding, include_pad, None)])


@converts("adaptive_avg_pool1d")
def _adaptive_pool1d(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    return weighted_sum(b, a["self"], [adaptive_windows(int(input_shape(node)[-1]), _per_axis(a["output_size"], 1)[0])])


_RESIZE: dict[str, dict[str, Any]] = {
    "upsample_nearest2d": {"mode": "nearest", "nearest_mode": "floor"},
    "_upsample_nearest_exact2d": {"mode": "nearest", "nearest_mode": "round_prefer_ceil"},
    "upsample_bilinear2d": {"mode": "linear"},
    "upsample_bicubic2d": {"mode": "cubic", "cubic_coeff_a": -0.75},
}


@converts(*_RESIZE)
def _resize(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    name = next(key for key in _RESIZE if f"aten.{key}." in f"{node.target}.")
    coordinates = "asymmetric" if name == "upsample_nearest2d" else "half_pixel"
    if a.get("align_corners"):
        coordinates = "align_corners"
    x = a.get("input") or a["self"]
    attributes = {**_RESIZE[name], "coordinate_transformation_mode": coordinates}
    scales = a.get("scale_factors") or [a.get("scales_h"), a.get("scales_w")]
    if all(scale is not None for scale in scales):  # torch then takes coordinates from them, not from the sizes
        return b.add("Resize", [x, "", b.constant([1.0, 1.0, *(float(scale) for scale in scales)])], **attributes)
    kept = b.add("Slice", [b.add("Shape", [x]), b.constant([0], np.int64), b.constant([2], np.int64)])
    sizes = b.constant([int(size) for size in node.meta["val"].shape[-2:]], np.int64)
    return b.add("Resize", [x, "", "", b.add("Concat", [kept, sizes], axis=0)], **attributes)


@converts("conv_transpose1d", "conv_transpose2d")
def _transposed_convolution(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    axes = input_rank(node) - 2
    if rank(node) != axes + 2 or axes not in (1, 2):
        raise UnsupportedError("a transposed convolution of a single image is not supported; give it a batch")
    inputs = [a["input"], a["weight"], *([a["bias"]] if a["bias"] else [])]
    return b.add(
        "ConvTranspose", inputs, strides=_per_axis(a["stride"], axes), pads=_per_axis(a["padding"], axes) * 2,
        output_padding=_per_axis(a["output_padding"], axes), dilations=_per_axis(a["dilation"], axes),
        group=int(a["groups"]),
    )  # fmt: skip
