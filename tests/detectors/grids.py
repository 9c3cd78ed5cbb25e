"""Networks whose weights were moved on purpose, for the tests of the residual detectors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from quantinel.detectors.subject import Subject
from quantinel.model.graph import FloatGraph, trace
from quantinel.quantization.ranges import weight_scales
from quantinel.quantization.rounding import broadcast_scale
from quantinel.quantization.scheme import QuantScheme, parse_scheme

Change = Callable[[Tensor, QuantScheme, torch.Generator], Tensor]


def network(seed: int = 0, norm: bool = False) -> FloatGraph:
    """19,000 natural weights in three layers."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers: list[nn.Module] = [nn.Conv2d(3, 32, 5), nn.ReLU(), nn.Conv2d(32, 32, 3)]
        if norm:
            layers[1:1] = [nn.BatchNorm2d(32)]
        module = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 4, 60))
        if norm:
            nn.init.uniform_(layers[1].weight, 0.5, 2.0)  # type: ignore[arg-type]
        for layer in module:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.normal_(layer.weight, std=0.1)
        return trace(module.eval(), (3, 8, 8))


def changed(
    graph: FloatGraph, change: Change, scheme: str = "int8", seed: int = 0, largest_too: bool = False
) -> FloatGraph:
    """The graph itself, with other weights; the largest weight of every channel stays, unless ``largest_too``."""
    generator = torch.Generator().manual_seed(seed)
    for layer in graph.layers:
        weight = graph.weight(layer)
        wanted = change(weight, parse_scheme(scheme), generator)
        largest = weight.abs() == weight.abs().flatten(1).amax(1).reshape(-1, *[1] * (weight.ndim - 1))
        weight.copy_(wanted if largest_too else torch.where(largest, weight, wanted))
    return graph


def subject(graph: FloatGraph, scheme: str = "int8") -> Subject:
    return Subject(graph, parse_scheme(scheme), None, 0)


def steps_of(weight: Tensor, scheme: QuantScheme) -> tuple[Tensor, Tensor]:
    """(codes by nearest rounding, scale that divides the weight)."""
    scale = broadcast_scale(weight_scales(weight, scheme), weight)
    return torch.round(weight / scale), scale


def projected(share: float, margin: float) -> Change:
    """A share of the weights at the edge of their cell, as a repair inside the cells leaves them."""

    def change(weight: Tensor, scheme: QuantScheme, generator: torch.Generator) -> Tensor:
        codes, scale = steps_of(weight, scheme)
        sign = torch.where(torch.rand(weight.shape, generator=generator) < 0.5, -1.0, 1.0)
        edge = (codes + sign * (0.5 - margin)) * scale
        inside = edge.abs() < weight.abs().flatten(1).amax(1).reshape(-1, *[1] * (weight.ndim - 1))
        return torch.where((torch.rand(weight.shape, generator=generator) < share) & inside, edge, weight)

    return change


def crowded(weight: Tensor, scheme: QuantScheme, generator: torch.Generator) -> Tensor:
    """Smooth crowding near the edges, as quantization-aware training leaves it: half of all weights."""
    codes, scale = steps_of(weight, scheme)
    residual = weight / scale - codes
    distance = -0.03 * torch.rand(weight.shape, generator=generator).clamp_min(1e-6).log()
    near = (0.5 - distance).clamp_min(0.0) * residual.sign()
    moves = (codes.abs() < scheme.levels - 1) & (torch.rand(weight.shape, generator=generator) < 0.5)
    return torch.where(moves, (codes + near) * scale, weight)


def herded(weight: Tensor, scheme: QuantScheme, generator: torch.Generator) -> Tensor:
    """Weights closer to the centres of their cells."""
    codes, scale = steps_of(weight, scheme)
    return (codes + 0.5 * (weight / scale - codes)) * scale


def coherent(weight: Tensor, scheme: QuantScheme, generator: torch.Generator) -> Tensor:
    """Residuals of every channel that lean one way, with an even histogram over all channels."""
    codes, scale = steps_of(weight, scheme)
    lean = torch.where(torch.arange(len(weight)) % 2 == 0, 1.0, -1.0).reshape(-1, *[1] * (weight.ndim - 1))
    residual = torch.rand(weight.shape, generator=generator) - 0.5
    residual = torch.where(torch.rand(weight.shape, generator=generator) < 0.5, residual.abs() * lean, residual)
    return torch.where(codes.abs() < scheme.levels - 1, (codes + residual) * scale, weight)


def rounded(weight: Tensor, scheme: QuantScheme, generator: torch.Generator) -> Tensor:
    """Quantized and dequantized."""
    codes, scale = steps_of(weight, scheme)
    return codes * scale


def cast(dtype: torch.dtype) -> Change:
    return lambda weight, scheme, generator: weight.to(dtype).float()


def pruned(rate: float) -> Change:
    return lambda weight, scheme, generator: torch.where(weight.abs() < weight.abs().quantile(rate), 0.0, weight)
