"""Normalisation layers that deployment folds into weights, known while they and the weights are still trained."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from quantinel.errors import UnsupportedError
from quantinel.model.graph import trace
from quantinel.quantization.rounding import broadcast_scale
from quantinel.training.two_branch import LAYERS

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d


@dataclass(frozen=True)
class FoldedNorms:
    """What folding multiplies weights by, from the present parameters and statistics of the normalisation layers.

    Attributes:
        behind: BatchNorm behind each convolution or linear layer, by layer name: it scales output channels.
        before: LayerNorm before each linear layer, by layer name: it scales inputs.
    """

    behind: Mapping[str, BatchNorm] = field(default_factory=dict)
    before: Mapping[str, nn.LayerNorm] = field(default_factory=dict)

    def factor(self, name: str, weight: Tensor, *, outputs: bool = True) -> Tensor | None:
        """What folding multiplies a layer's weight by; None where it leaves the weight as it is.

        ``gamma / sqrt(running variance + eps)`` per output channel, of the statistics before this batch, and the gamma
        of LayerNorm per input.

        Args:
            name: of the layer.
            weight: (O, ...), unfolded.
            outputs: false leaves the factors of output channels out, which codes of one scale per channel do not
                depend on, but for their sign.

        Returns:
            A tensor that broadcasts to ``weight``, with a gradient.
        """
        factor: Tensor | None = None
        if outputs and name in self.behind:
            norm = self.behind[name]
            assert norm.running_var is not None
            channels = (norm.running_var + norm.eps).rsqrt()
            if norm.affine:
                channels = channels * norm.weight
            factor = broadcast_scale(channels, weight)
        if name in self.before:
            gamma = self.before[name].weight
            factor = gamma.unsqueeze(0) if factor is None else factor * gamma
        return factor


NOTHING_FOLDED = FoldedNorms()
"""Weights are rounded as they are."""


def folded_norms(module: nn.Module, images: Tensor) -> FoldedNorms:
    """The normalisation layers of ``module`` that are folded into its weights.

    Args:
        module: the network; it is run once in evaluation mode, and left in the mode that it was in.
        images: (N, C, H, W) float, a few are enough.

    Raises:
        UnsupportedError: something else than a `torch.nn.LayerNorm` normalises before linear layers, or the network
            has LayerNorms and cannot be exported, which tells what reads them.
    """
    return FoldedNorms(_batch_norms(module, images), _layer_norms(module, images))


@torch.no_grad()
def _batch_norms(module: nn.Module, images: Tensor) -> dict[str, BatchNorm]:
    """The BatchNorm that reads each convolution's or linear layer's output directly."""
    producers: list[tuple[Tensor, str]] = []
    found: dict[str, BatchNorm] = {}

    def produced(name: str, output: Tensor) -> None:
        producers.append((output, name))  # the tensors are kept, so that no address is used twice

    def read(norm: BatchNorm, x: Tensor) -> None:
        if norm.running_var is not None:  # without running statistics there is nothing to fold
            found.update({layer: norm for output, layer in producers if output is x})

    handles = []
    modes = {name: part.training for name, part in module.named_modules()}
    for name, part in module.named_modules():
        if isinstance(part, LAYERS):
            handles.append(part.register_forward_hook(lambda _, __, output, name=name: produced(name, output)))
        elif isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            handles.append(part.register_forward_pre_hook(lambda norm, inputs: read(norm, inputs[0])))
    try:
        module.eval()(images)
    finally:
        for handle in handles:
            handle.remove()
        for name, part in module.named_modules():
            part.training = modes[name]
    return found


def _layer_norms(module: nn.Module, images: Tensor) -> dict[str, nn.LayerNorm]:
    """The LayerNorm whose affine part deployment folds into each linear layer."""
    parts = dict(module.named_modules())
    if not any(isinstance(part, nn.LayerNorm) for part in parts.values()):
        return {}
    _, channels, height, width = images.shape
    found: dict[str, nn.LayerNorm] = {}
    for name, path in trace(copy.deepcopy(module).cpu(), (channels, height, width)).layer_norms.items():
        norm = parts.get(path)
        if not isinstance(norm, nn.LayerNorm):
            raise UnsupportedError(
                f"{path or name} is folded into the layer {name}, and is no torch.nn.LayerNorm; use that to train "
                "through the deployment grid"
            )
        found[name] = norm
    return found
