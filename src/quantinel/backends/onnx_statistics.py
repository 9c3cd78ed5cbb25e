"""Converters of reductions, norms and normalisations by the image's own statistics; see `onnx_operators`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import fx

from quantinel.backends.onnx_builder import GraphBuilder
from quantinel.backends.onnx_operators import Arguments, converts, input_rank, input_shape
from quantinel.errors import UnsupportedError


def _axes(value: Any, dimensions: int) -> list[int]:
    """Reduced dimensions; all of them where none is named."""
    if value is None or value == []:
        return list(range(dimensions))
    return [item % dimensions for item in (value if isinstance(value, list | tuple) else [value])]


def _values_only(node: fx.Node) -> None:
    """Refuse a model that reads the second result of an operator, the indices."""
    if any(reader.args[1] != 0 for reader in node.users):
        raise UnsupportedError(f"the model uses the indices that {node.target} returns; only its values are supported")


@converts("mean")
def _mean(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    return b.add("ReduceMean", [a["self"]], axes=a.get("dim") or None, keepdims=int(a.get("keepdim") or 0))


@converts("amax")
def _amax(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    return b.add("ReduceMax", [a["self"]], axes=a["dim"] or None, keepdims=int(a["keepdim"]))


@converts("sum")
def _sum(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    axes = [b.constant(a["dim"], np.int64)] if a.get("dim") else []
    return b.add("ReduceSum", [a["self"], *axes], keepdims=int(a.get("keepdim") or 0))


@converts("amin")
def _amin(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    return b.add("ReduceMin", [a["self"]], axes=a["dim"] or None, keepdims=int(a["keepdim"]))


@converts("logsumexp")
def _log_sum_exp(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    return b.add("ReduceLogSumExp", [a["self"]], axes=_axes(a["dim"], input_rank(node)), keepdims=int(a["keepdim"]))


@converts("max", "min")
def _extreme(b: GraphBuilder, a: Arguments, node: fx.Node) -> Any:
    """Three forms in torch: of the whole tensor, of two tensors, along a dimension with indices."""
    name = "Max" if "max" in str(node.target) else "Min"
    if a.get("other") is not None:
        return b.add(name, [a["self"], a["other"]])
    if "dim" not in a:
        raise UnsupportedError(f"operator {node.target} over the whole batch mixes its images; name the dimensions")
    _values_only(node)
    return [b.add(f"Reduce{name}", [a["self"]], axes=[a["dim"]], keepdims=int(a["keepdim"])), ""]


def _moments(b: GraphBuilder, a: Arguments, node: fx.Node, root: bool) -> tuple[str, str]:
    """Variance (or standard deviation) and mean over ``dim``."""
    shape = input_shape(node)
    axes = _axes(a.get("dim"), len(shape))
    if 0 in axes:
        raise UnsupportedError(f"operator {node.target} over the batch mixes its images; name the other dimensions")
    count = math.prod(int(shape[axis]) for axis in axes)
    if "correction" in a:
        correction = 1.0 if a["correction"] is None else float(a["correction"])
    else:
        correction = float(a["unbiased"])
    keep = int(a["keepdim"])
    mean = b.add("ReduceMean", [a["self"]], axes=axes, keepdims=1)
    centred = b.add("Sub", [a["self"], mean])
    spread = b.add("ReduceMean", [b.add("Mul", [centred, centred])], axes=axes, keepdims=keep)
    if correction:
        spread = b.add("Mul", [spread, b.constant(count / max(count - correction, 0.0) if count > correction else 0.0)])
    if root:
        spread = b.add("Sqrt", [spread])
    return spread, mean if keep else b.add("Squeeze", [mean, b.constant(axes, np.int64)])


@converts("std", "var")
def _spread(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    return _moments(b, a, node, "std" in str(node.target))[0]


@converts("std_mean", "var_mean")
def _spread_and_mean(b: GraphBuilder, a: Arguments, node: fx.Node) -> list[str]:
    return list(_moments(b, a, node, "std" in str(node.target)))


@converts("linalg_vector_norm", "norm")
def _norm(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    order = a["ord"] if "ord" in a else a["p"]
    order = 2.0 if order is None else float(order)
    attributes: dict[str, Any] = {"axes": _axes(a.get("dim"), input_rank(node)), "keepdims": int(a.get("keepdim") or 0)}
    if order in (1.0, 2.0):
        return b.add(f"ReduceL{int(order)}", [a["self"]], **attributes)
    if math.isinf(order):
        return b.add("ReduceMax" if order > 0 else "ReduceMin", [b.add("Abs", [a["self"]])], **attributes)
    raise UnsupportedError(f"a norm of order {order:g} is not supported; use 1, 2 or infinity")


@converts("instance_norm")
def _instance_norm(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    channels = int(input_shape(node)[1])
    scale = a["weight"] or b.constant(np.ones(channels))
    shift = a["bias"] or b.constant(np.zeros(channels))
    if a["use_input_stats"]:
        return b.add("InstanceNormalization", [a["input"], scale, shift], epsilon=float(a["eps"]))
    statistics = [a["running_mean"], a["running_var"]]
    return b.add("BatchNormalization", [a["input"], scale, shift, *statistics], epsilon=float(a["eps"]))


@converts("rms_norm")
def _rms_norm(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    axes = list(range(-len(a["normalized_shape"]), 0))
    epsilon = float(np.finfo(np.float32).eps) if a["eps"] is None else float(a["eps"])
    power = b.add("ReduceMean", [b.add("Mul", [a["input"], a["input"]])], axes=axes, keepdims=1)
    x = b.add("Div", [a["input"], b.add("Sqrt", [b.add("Add", [power, b.constant(epsilon)])])])
    return b.add("Mul", [x, a["weight"]]) if a["weight"] else x


@converts("layer_norm")
def _layer_norm(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    shape = [int(item) for item in a["normalized_shape"]]
    scale = a["weight"] or b.constant(np.ones(shape))
    inputs = [a["input"], scale] + ([a["bias"]] if a["bias"] else [])
    return b.add("LayerNormalization", inputs, axis=-len(shape), epsilon=float(a["eps"]))


@converts("group_norm")
def _group_norm(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    groups, channels, dimensions = int(a["num_groups"]), int(input_shape(node)[1]), input_rank(node)
    grouped = b.add("Reshape", [a["input"], b.constant([0, groups, -1], np.int64)])
    ones, zeros = b.constant(np.ones(groups)), b.constant(np.zeros(groups))
    normal = b.add("InstanceNormalization", [grouped, ones, zeros], epsilon=float(a["eps"]))
    x = b.add("Reshape", [normal, b.add("Shape", [a["input"]])])
    wide = b.constant([channels] + [1] * (dimensions - 2), np.int64)
    for operator_name, parameter in (("Mul", a["weight"]), ("Add", a["bias"])):
        if parameter:
            x = b.add(operator_name, [x, b.add("Reshape", [parameter, wide])])
    return x


@converts("batch_norm")
def _batch_norm(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    channels = int(input_shape(node)[1])
    scale = a["weight"] or b.constant(np.ones(channels))
    shift = a["bias"] or b.constant(np.zeros(channels))
    statistics = [a["running_mean"], a["running_var"]]
    if None in statistics:
        raise UnsupportedError("BatchNorm without running statistics depends on the batch; train it with statistics")
    return b.add("BatchNormalization", [a["input"], scale, shift, *statistics], epsilon=float(a["eps"]))
