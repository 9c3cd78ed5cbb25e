"""What the last linear layer of a network reads: the features that defenses and detectors call penultimate."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from quantinel.data.images import as_float
from quantinel.errors import UnsupportedError

_BATCH = 250


def last_linear(module: nn.Module) -> tuple[str, nn.Linear]:
    """Name and layer of the last linear layer, in the order of definition.

    Raises:
        UnsupportedError: there is none.
    """
    found = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    if not found:
        raise UnsupportedError("the network has no linear layer, whose inputs are wanted; choose another method")
    return found[-1]


@torch.no_grad()
def penultimate_features(forward: Callable[[Tensor], Tensor], head: nn.Linear, images: Tensor) -> Tensor:
    """Inputs (N, D) float32 of ``head``.

    Args:
        forward: runs the network that holds ``head`` on float images, in evaluation mode.
        head: see `last_linear`.
        images: (N, C, H, W) uint8.

    Raises:
        UnsupportedError: the layer does not read one vector an image, or is not run.
    """
    seen: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].float()))
    try:
        for batch in torch.split(images, _BATCH):
            forward(as_float(batch))
    finally:
        handle.remove()
    if not seen:
        raise UnsupportedError("the last linear layer that the network defines is never run; remove it")
    found = torch.cat(seen)
    if found.ndim != 2 or len(found) != len(images):
        raise UnsupportedError("the last linear layer does not read one vector an image; choose another method")
    return found
