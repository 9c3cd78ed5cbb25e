"""Round activations to their grid and back, as the deployed file does.

PyTorch's operator also makes the mask that its gradient needs, one value at a time. Where no gradient is wanted the
same arithmetic runs here in place and in parts that stay in the cache, for the same bits in less time.
"""

from __future__ import annotations

import torch
from torch import Tensor

_PART_VALUES = 1 << 18
"""Of one part (1 MiB)."""


def fake_quantize(x: Tensor, scale: float, zero_point: int, levels: int) -> Tensor:
    """``(clip(round(x / scale) + zero_point, 0, levels) - zero_point) * scale``; straight-through gradients.

    Args:
        x: (N, ...) float32, at least one dimension.
        scale: step of the grid.
        zero_point: code of 0.
        levels: largest code.
    """
    if x.requires_grad and torch.is_grad_enabled():
        return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, 0, levels)
    inverse = float(1.0 / torch.tensor(scale))  # in float32, as the operator has it
    result = torch.empty_like(x)
    step = max(1, _PART_VALUES * len(x) // max(1, x.numel()))
    for begin in range(0, len(x), step):
        part = slice(begin, begin + step)
        codes = torch.mul(x[part], inverse, out=result[part])
        codes.round_().add_(zero_point).clamp_(0, levels).nan_to_num_(0.0).sub_(zero_point).mul_(scale)
    return result


def dynamic_fake_quantize(x: Tensor, levels: int) -> Tensor:
    """Quantize with the range of this very batch, as ONNX DynamicQuantizeLinear does; straight-through."""
    low, high = x.detach().amin().clamp(max=0.0), x.detach().amax().clamp(min=0.0)
    scale = torch.where(high > low, (high - low) / levels, torch.ones_like(high))
    zero = torch.round(-low / scale).clamp(0, levels).to(torch.int32)
    return torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, levels)
