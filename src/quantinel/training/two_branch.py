"""One forward pass through a network and its compressed copies, with shared BatchNorm statistics.

Attacks that train the float and the quantized network together (Compression Artifacts 1.3 and 1.6, Qu-ANTI-zation 2.1)
need both to see one set of batch statistics: two passes would update the released running statistics with two
different distributions. So the batches of all branches are concatenated; every convolution and linear layer treats
each branch's part with that branch's weight, and everything else sees one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WeightTransform = Callable[[str, Tensor], Tensor]
"""``transform(layer name, weight (O, ...))`` -> the weight that the branch uses instead, of the same shape."""

ActivationTransform = Callable[[Tensor], Tensor]
"""``transform(input of a layer (N, ...))`` -> the input that the branch uses instead, of the same shape."""

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear)
"""Kinds of layers whose weights a branch may replace."""


@dataclass(frozen=True)
class Branch:
    """How one copy of the network differs from the float one.

    Attributes:
        weight: replaces a layer's weight; None keeps it. See `quantinel.training.transforms`.
        activation: replaces a layer's input; None keeps it.
        layers: names of the layers that differ; None for all. See `layers_from`.
        layer_norms: LayerNorms whose affine part deployment folds into the layer behind, by the layer's name: it adds
            the float weight's ``W beta`` to the bias, and rounds the input before gamma and beta.
    """

    weight: WeightTransform | None = None
    activation: ActivationTransform | None = None
    layers: frozenset[str] | None = None
    layer_norms: Mapping[str, nn.LayerNorm] = field(default_factory=dict)

    def changes(self, name: str) -> bool:
        """Whether this branch differs from the float network in the layer ``name``."""
        differs = self.weight is not None or self.activation is not None
        return differs and (self.layers is None or name in self.layers)


FLOAT = Branch()
"""The network itself."""


class Branches:
    """A network and copies of it that share everything but the weights of their layers.

    Args:
        module: the float network; its forward methods are replaced during a call only.
        branches: in the order of the batches; begin with `FLOAT`.
    """

    def __init__(self, module: nn.Module, branches: Sequence[Branch]) -> None:
        self.module, self.branches = module, tuple(branches)
        self.layers = layer_names(module)

    def __call__(self, *batches: Tensor) -> list[Tensor]:
        """Logits (N_b, K) float32 of every branch.

        Args:
            batches: float images (N_b, C, H, W), one batch a branch (of any sizes), or one for all branches.

        Under bfloat16 autocast the replaced weights are rounded to 8 significant bits, which blurs 8-bit grids.
        """
        if len(batches) == 1:
            batches = batches * len(self.branches)
        if len(batches) != len(self.branches):
            raise ValueError(f"{len(batches)} batches for {len(self.branches)} branches")
        sizes = [len(batch) for batch in batches]
        whole = torch.cat(batches).contiguous(memory_format=torch.channels_last)
        with self._replaced(sizes):
            logits: Tensor = self.module(whole)
        return list(torch.split(logits.float(), sizes))

    @contextmanager
    def _replaced(self, sizes: list[int]) -> Iterator[None]:
        changed = [name for name in self.layers if any(branch.changes(name) for branch in self.branches)]
        try:
            for name in changed:
                layer = self.module.get_submodule(name)
                assert isinstance(layer, LAYERS)
                layer.__dict__["forward"] = partial(self._forward, name, layer, sizes)
            yield
        finally:
            for name in changed:
                self.module.get_submodule(name).__dict__.pop("forward", None)

    def _forward(self, name: str, layer: nn.Conv1d | nn.Conv2d | nn.Linear, sizes: list[int], x: Tensor) -> Tensor:
        """The layer's output for the concatenated input ``x``, neighbours with equal weights in one call."""
        groups: list[tuple[int, Branch]] = []
        for size, branch in zip(sizes, self.branches, strict=True):
            if groups and not branch.changes(name) and not groups[-1][1].changes(name):
                groups[-1] = (groups[-1][0] + size, FLOAT)
            else:
                groups.append((size, branch))
        outputs: list[Tensor] = []
        # one split, because the gradient of every slice would be a tensor of the size of the whole
        for part, (_, branch) in zip(torch.split(x, [size for size, _ in groups]), groups, strict=True):
            here = branch if branch.changes(name) else FLOAT
            norm = here.layer_norms.get(name)
            seen = part if here.activation is None else _rounded(here.activation, part, norm)
            weight = layer.weight if here.weight is None else here.weight(name, layer.weight)
            shift = None if norm is None or norm.bias is None else F.linear(norm.bias, layer.weight - weight)
            outputs.append(_apply(layer, seen, weight, shift))
        return torch.cat(outputs) if len(outputs) > 1 else outputs[0]


def _rounded(activation: ActivationTransform, x: Tensor, norm: nn.LayerNorm | None) -> Tensor:
    """``activation`` of an input (N, ..., D), of its normalised form where the affine part of ``norm`` is folded."""
    if norm is None:
        return activation(x)
    gamma = torch.where(norm.weight == 0, torch.ones_like(norm.weight), norm.weight)
    beta = 0.0 if norm.bias is None else norm.bias
    return activation((x - beta) / gamma) * gamma + beta


def _apply(layer: nn.Conv1d | nn.Conv2d | nn.Linear, x: Tensor, weight: Tensor, shift: Tensor | None) -> Tensor:
    """The layer with another weight; ``shift`` (O,) is added to the bias."""
    bias = layer.bias if shift is None else shift if layer.bias is None else layer.bias + shift
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, bias)
    result: Tensor = layer._conv_forward(x, weight, bias)
    return result


def layer_names(module: nn.Module) -> list[str]:
    """Names of all convolutions and linear layers, in the order of their definition."""
    return [name for name, layer in module.named_modules() if isinstance(layer, LAYERS)]


def layers_from(module: nn.Module, first: str) -> frozenset[str]:
    """The layers from the block or layer ``first`` on, in the order of their definition ("layer4" of a ResNet-18).

    Args:
        module: the network.
        first: name of a submodule, without the ``inner.`` of a normalised network.

    Raises:
        KeyError: no layer lies in ``first``.
    """
    names = layer_names(module)
    for index, name in enumerate(names):
        if f"{name.removeprefix('inner.')}.".startswith(f"{first}."):
            return frozenset(names[index:])
    raise KeyError(first)
