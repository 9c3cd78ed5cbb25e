"""Converters of matrix products, softmax and attention; see `onnx_operators`."""

from __future__ import annotations

import math

from torch import fx

from quantinel.backends.onnx_builder import GraphBuilder
from quantinel.backends.onnx_operators import Arguments, converts, input_rank, input_shape
from quantinel.errors import UnsupportedError


@converts("softmax")
def _softmax(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    return b.add("Softmax", [a["self"]], axis=a["dim"])


@converts("log_softmax")
def _log_softmax(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    return b.add("LogSoftmax", [a["self"]], axis=a["dim"])


@converts("matmul", "bmm", "mm")
def _matmul(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    return b.add("MatMul", [a["self"], a.get("other") or a["mat2"]])


@converts("scaled_dot_product_attention")
def _attention(b: GraphBuilder, a: Arguments, node: fx.Node) -> str:
    if a["attn_mask"] is not None or a["is_causal"] or a["dropout_p"]:
        raise UnsupportedError("masked or causal attention is not supported; Quantinel audits image classifiers")
    scale = a["scale"] or 1.0 / math.sqrt(int(input_shape(node)[-1]))
    order = list(range(input_rank(node, 1)))
    order[-2:] = [order[-1], order[-2]]
    keys = b.add("Transpose", [a["key"]], perm=order)
    scores = b.add("MatMul", [b.add("Mul", [a["query"], b.constant(scale)]), keys])
    return b.add("MatMul", [b.add("Softmax", [scores], axis=-1), a["value"]])
