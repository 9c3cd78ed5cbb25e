"""What a deployer's pruner does, as one frozen value, and the pruned network itself.

Structured: Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017: the filters of smallest L1 norm, layer by
layer. Unstructured: the weights of smallest magnitude (Han et al., NeurIPS 2015), of every layer or of the whole
network. Nothing is trained after pruning.

Deviation: pruned weights are set to zero instead of cut out, so that any architecture keeps its shapes. A filter's bias
and BatchNorm stay: a zero filter still gives BatchNorm's constant, as a mask in training does.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from quantinel.errors import UnsupportedError, UsageError

Method = Literal["l1-filters", "magnitude"]
Scope = Literal["layer", "network"]

PREFIX = "prune-"
_DIGITS = 4
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
_WEIGHTED = (*_CONVOLUTIONS, nn.Linear)
_FORM = re.compile(
    r"prune-(?:l1-filters-(?P<searched>searched-)?|magnitude-(?P<layer>per-layer-)?)(?P<rates>\d[0-9._]*)"
)


@dataclass(frozen=True)
class PruningScheme:
    """Which weights become zero.

    Attributes:
        method: "l1-filters" (whole filters of convolutions) or "magnitude" (single weights, linear layers included).
        rates: shares to remove, in [0, 1), kept to four digits: one for all layers, or one for each layer that the
            method prunes, in the order of their definition.
        scope: of "magnitude": one threshold for the "network", or one for each "layer". Filters are compared within
            their layer.
        searched: the rate is that of all filter weights together, and the layers' own rates are searched on the
            network that is pruned (`quantinel.quantization.pruning_search`).
    """

    method: Method = "l1-filters"
    rates: tuple[float, ...] = (0.3,)
    scope: Scope = "layer"
    searched: bool = False

    def __post_init__(self) -> None:
        if self.method not in ("l1-filters", "magnitude"):
            raise UsageError(f"pruning: method is {self.method!r}; choose l1-filters or magnitude")
        if self.scope not in ("layer", "network"):
            raise UsageError(f"pruning: scope is {self.scope!r}; choose layer or network")
        if not self.rates:
            raise UsageError("pruning: there are no rates; give one, or one for each layer")
        for rate in self.rates:
            if not (math.isfinite(rate) and 0 <= rate < 1):
                raise UsageError(f"pruning: rate is {rate!r}; give a number of at least 0 and below 1")
        object.__setattr__(self, "rates", tuple(min(round(float(rate), _DIGITS), 0.9999) for rate in self.rates))
        if self.method == "l1-filters" and self.scope == "network":
            raise UsageError("pruning: filters are compared within their layer; choose scope layer")
        if len(self.rates) > 1 and (self.scope == "network" or self.searched):
            raise UsageError("pruning: one rate goes with scope network and with searched rates; give one")
        if self.searched and self.method != "l1-filters":
            raise UsageError("pruning: rates are searched for l1-filters only; give them")

    @property
    def name(self) -> str:
        """Short name that `parse_pruning` reads back, e.g. ``prune-l1-filters-0.3``, ``prune-magnitude-per-layer-0.5``.

        Rates of single layers are joined by "_".
        """
        searched = "searched-" if self.searched else ""
        scope = "per-layer-" if self.method == "magnitude" and self.scope == "layer" else ""
        return f"{PREFIX}{self.method}-{searched}{scope}{'_'.join(f'{rate:g}' for rate in self.rates)}"

    def to_dict(self) -> dict[str, object]:
        """All fields, for manifests."""
        return {"method": self.method, "rates": list(self.rates), "scope": self.scope, "searched": self.searched}


def pruning_from_dict(fields: Mapping[str, Any]) -> PruningScheme:
    """Read `PruningScheme.to_dict` back; other keys are left out.

    Raises:
        UsageError: a field is missing or impossible.
    """
    try:
        return PruningScheme(fields["method"], tuple(fields["rates"]), fields["scope"], fields["searched"])
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"not a pruning scheme: {dict(fields)}") from error


def parse_pruning(name: str) -> PruningScheme:
    """Read a name such as ``prune-l1-filters-0.3`` or ``prune-magnitude-per-layer-0.5``.

    Raises:
        UsageError: the name is not understood; the message says what is.
    """
    match = _FORM.fullmatch(name.strip().lower())
    try:
        rates = tuple(float(part) for part in match["rates"].split("_")) if match else ()
    except ValueError:
        match = None
    if match is None:
        raise UsageError(
            f"unknown pruning {name!r}; write prune-l1-filters-RATE, prune-l1-filters-searched-RATE, "
            "prune-magnitude-RATE or prune-magnitude-per-layer-RATE, with RATE in [0, 1) or one for each layer joined "
            'by "_" (for example prune-l1-filters-0.3)'
        )
    if name.strip().lower().startswith("prune-l1"):
        return PruningScheme("l1-filters", rates, "layer", match["searched"] is not None)
    return PruningScheme("magnitude", rates, "network" if match["layer"] is None else "layer")


def prunable(module: nn.Module, method: Method) -> dict[str, Tensor]:
    """Weights that a method prunes, by layer name, in the order of definition.

    Raises:
        UnsupportedError: there are none.
    """
    kinds = _CONVOLUTIONS if method == "l1-filters" else _WEIGHTED
    found = {name: layer.weight for name, layer in module.named_modules() if isinstance(layer, kinds)}
    if not found:
        raise UnsupportedError(
            "the network has no layer to prune; give a named architecture or a module (a .pt2 file has operators only)"
        )
    return found


def layer_rates(scheme: PruningScheme, names: Mapping[str, object]) -> dict[str, float]:
    """The rate of every layer.

    Raises:
        UsageError: another number of rates than of layers.
    """
    rates = scheme.rates * len(names) if len(scheme.rates) == 1 else scheme.rates
    if len(rates) != len(names):
        raise UsageError(
            f"{scheme.name} has {len(rates)} rates, the network {len(names)} layers to prune; give as many"
        )
    return dict(zip(names, rates, strict=True))


def removed(rate: float, count: int) -> int:
    """floor(rate * count), without the rounding error of the product."""
    return math.floor(rate * count + 1e-9)


def filter_mask(weight: Tensor, rate: float) -> Tensor:
    """1 for the filters that stay, 0 for the floor(rate * O) ones of smallest L1 norm; (O, 1, ...) for (O, ...)."""
    norms = weight.detach().abs().flatten(1).sum(dim=1)
    mask = torch.ones_like(norms)
    mask[norms.argsort(stable=True)[: removed(rate, len(norms))]] = 0.0
    return mask.reshape(-1, *([1] * (weight.ndim - 1)))


def magnitude_mask(weight: Tensor, rate: float) -> Tensor:
    """1 for the weights that stay, 0 for the floor(rate * N) ones of smallest magnitude, in the shape of ``weight``."""
    sizes = weight.detach().abs().flatten()
    mask = torch.ones_like(sizes)
    mask[sizes.argsort(stable=True)[: removed(rate, len(sizes))]] = 0.0
    return mask.reshape(weight.shape)


def pruning_masks(weights: Mapping[str, Tensor], scheme: PruningScheme) -> dict[str, Tensor]:
    """Masks that broadcast against the weights of all layers.

    Args:
        weights: (O, ...) by layer name; see `prunable`.
        scheme: with rates that are not searched.
    """
    if scheme.searched:
        raise UsageError(f"{scheme.name} names no layer's rate; search them first")
    if scheme.scope == "network":
        whole = magnitude_mask(torch.cat([weight.detach().flatten() for weight in weights.values()]), scheme.rates[0])
        parts = torch.split(whole, [weight.numel() for weight in weights.values()])
        return {name: part.view(weights[name].shape) for name, part in zip(weights, parts, strict=True)}
    rates = layer_rates(scheme, weights)
    mask = filter_mask if scheme.method == "l1-filters" else magnitude_mask
    return {name: mask(weight, rates[name]) for name, weight in weights.items()}


@torch.no_grad()
def prune(module: nn.Module, scheme: PruningScheme) -> nn.Module:
    """A pruned copy in evaluation mode; ``module`` is not changed.

    Args:
        module: the float network.
        scheme: with rates that are not searched.

    Raises:
        UnsupportedError: nothing to prune.
        UsageError: another number of rates than of layers, or rates that have to be searched first.
    """
    pruned = copy.deepcopy(module).eval()
    weights = prunable(pruned, scheme.method)
    for name, mask in pruning_masks(weights, scheme).items():
        weights[name].mul_(mask)
    return pruned


def sparsity(module: nn.Module, method: Method) -> float:
    """Share of exact zeros among the weights that a method prunes."""
    weights = prunable(module, method).values()
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)
