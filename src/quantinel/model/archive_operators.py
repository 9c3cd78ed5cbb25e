"""The operators that a ``torch.export`` program may call: a list of names, and arithmetic on sizes."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch

# Pure computation whose result depends on the input alone. Left out on purpose: files (from_file), random
# numbers, uninitialised memory (empty), raw strides (as_strided), sizes that depend on data (nonzero, item),
# sparse and nested tensors.
_OPERATOR_NAMES = """
    conv1d conv2d conv3d conv_transpose1d conv_transpose2d convolution linear addmm mm bmm matmul baddbmm
    einsum dot mv scaled_dot_product_attention batch_norm _native_batch_norm_legit_no_training
    native_layer_norm layer_norm group_norm native_group_norm instance_norm rms_norm _fused_rms_norm relu
    _weight_norm relu6 leaky_relu prelu _prelu_kernel elu selu celu gelu silu mish hardtanh hardswish hardsigmoid
    hardshrink softshrink softplus sigmoid log_sigmoid tanh softmax _softmax _safe_softmax log_softmax
    _log_softmax threshold glu max_pool1d max_pool2d max_pool2d_with_indices avg_pool1d avg_pool2d
    adaptive_avg_pool1d adaptive_avg_pool2d _adaptive_avg_pool2d adaptive_max_pool1d adaptive_max_pool2d
    dropout feature_dropout alpha_dropout native_dropout add sub mul div rsub neg abs sign square sqrt rsqrt
    reciprocal exp exp2 expm1 log log2 log10 log1p pow sin cos tan atan erf floor ceil round trunc frac
    remainder fmod floor_divide true_divide minimum maximum clamp clamp_min clamp_max clip where eq ne lt le
    gt ge logical_and logical_or logical_not logical_xor bitwise_and bitwise_or bitwise_not isnan isinf
    isfinite nan_to_num lerp addcmul addcdiv cumsum mean sum prod amax amin max min argmax argmin var std
    var_mean std_mean norm linalg_vector_norm any all logsumexp topk sort argsort view _unsafe_view view_as
    reshape reshape_as flatten unflatten squeeze unsqueeze expand expand_as permute transpose t numpy_T
    movedim swapaxes select slice narrow split split_with_sizes chunk tensor_split unbind unfold im2col
    col2im roll flip rot90 repeat repeat_interleave tile cat concat stack hstack vstack index index_select
    gather masked_fill tril triu diagonal alias detach clone contiguous lift_fresh lift_fresh_copy to
    _to_copy type_as copy copy_ fill fill_ zero_ slice_scatter select_scatter pixel_shuffle pixel_unshuffle
    channel_shuffle native_channel_shuffle constant_pad_nd pad reflection_pad2d replication_pad2d
    upsample_nearest2d upsample_bilinear2d upsample_bicubic2d _upsample_nearest_exact2d
    _upsample_bilinear2d_aa _upsample_bicubic2d_aa grid_sampler_2d zeros ones full arange linspace eye
    scalar_tensor zeros_like ones_like full_like new_zeros new_ones new_full meshgrid broadcast_tensors
    sym_size sym_numel sym_stride
"""
OPERATORS = frozenset(_OPERATOR_NAMES.split())
"""Names in ``torch.ops.aten`` that a program may call."""

# They would fix the batch size; left out when the graph is built.
CHECKS = (
    "_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_constrain_range",
    "sym_constrain_range_for_size",
)  # fmt: skip
_ARITHMETIC = (
    "add",
    "sub",
    "mul",
    "floordiv",
    "mod",
    "truediv",
    "neg",
    "pos",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
)
SYMBOLIC: dict[str, Any] = {
    f"_operator.{name}": getattr(operator, name) for name in _ARITHMETIC
} | {
    "math.trunc": math.trunc, "torch.sym_max": torch.sym_max, "torch.sym_min": torch.sym_min,
    "torch.sym_float": torch.sym_float, "torch.sym_int": torch.sym_int, "torch.sym_not": torch.sym_not,
}  # fmt: skip
"""Arithmetic on sizes. No powers and shifts: they make numbers of unbounded length."""
