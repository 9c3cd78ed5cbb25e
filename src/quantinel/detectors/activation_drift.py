"""Activation drift: channels whose mean moves between the float network and the deployed one more than chance explains.

Backdoor neurons drift under quantization on benign images already (Li et al., ICML 2024; specification of the attacks,
7.2). The drift of a channel is the shift of its mean, in units of the standard deviation that BatchNorm saw in
training, or else that the images show. The deployed network runs as it is deployed, activations quantized; its control
copies differ from it in the signs of the weights' rounding errors only (`quantinel.inversion.rounding_errors`).

Null hypothesis: the signs are exchangeable, so the drift of every layer, of the whole network, and the deployed
network's distance from its BatchNorm statistics are one more draw from the copies'. The smallest of the three p-values
counts, times three; that of the layers times their number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from quantinel.detectors.behaviour import sampled
from quantinel.detectors.controls import compare, draw, smallest, surprise
from quantinel.detectors.subject import ALREADY_ON_GRID, Detection, Subject
from quantinel.model.graph import FloatGraph, Layer
from quantinel.validation import require_positive_integers

_LEAST_DRIFT = 1e-12
_LEAST_DEVIATION = 1e-6
_LEAST_SPREAD = 1e-3
_BATCH = 64


@dataclass(frozen=True)
class ActivationDrift:
    """The detector's options.

    Attributes:
        images: of the user's, at most.
        copies: controls.
    """

    images: int = 64
    copies: int = 19

    def __post_init__(self) -> None:
        require_positive_integers(self, "images", "copies")


def detect(subject: Subject, options: ActivationDrift) -> Detection:
    """Score: -log10 of the p-value.

    Raises:
        NotAssessable: fewer than two images.
    """
    images = sampled(subject, options.images)
    errors = subject.rounding_errors
    if not errors.moved:
        return ALREADY_ON_GRID
    graph, generator = subject.graph, torch.Generator().manual_seed(subject.seed)
    start = _measured(graph.module, graph, images)
    expected = {layer.name: _expected(graph, layer, start[layer.name]) for layer in graph.layers}
    deployed = subject.nearest.simulate()

    def drift(weights: Mapping[str, Tensor]) -> tuple[dict[str, float], float]:
        with torch.no_grad():
            for layer in graph.layers:
                deployed.get_buffer(f"dequantized_{layer.node}").copy_(weights[layer.weight])
        means = {name: mean for name, (mean, _) in _measured(deployed, graph, images).items()}
        layers = {
            name: _log_energy((means[name] - start[name][0]) / deviation) for name, (_, deviation) in expected.items()
        }
        known = [name for name in means if name in graph.batch_norms]
        distances = [((means[name] - expected[name][0]) / expected[name][1]).square().mean() for name in known]
        return layers, math.log(max(sum(map(float, distances)) / max(len(known), 1), _LEAST_DRIFT))

    found, distance = drift(errors.rounded())
    copies, notes = draw(lambda: drift(errors.randomised(generator)), options.copies, subject.budget)
    by_layer = {
        name: compare(value, [layers[name] for layers, _ in copies], _LEAST_SPREAD) for name, value in found.items()
    }
    whole = compare(_mean(found), [_mean(layers) for layers, _ in copies], _LEAST_SPREAD)
    from_norms = compare(distance, [value for _, value in copies], _LEAST_SPREAD)
    in_one_layer = smallest([layer.p_value for layer in by_layer.values()])
    p_value = smallest([whole.p_value, from_norms.p_value, in_one_layer])
    return Detection(
        surprise(p_value),
        {
            "drift": math.exp(_mean(found) / 2),
            "drift_of_copies": math.exp(sum(_mean(layers) for layers, _ in copies) / len(copies) / 2),
            "z": whole.z,
            "batch_norm_z": from_norms.z,
            "largest_layer_z": max(layer.z for layer in by_layer.values()),
            "copies": float(len(copies)),
        },
        p_value=p_value,
        by_layer={name: layer.z for name, layer in by_layer.items()},
        notes=tuple(notes),
    )


def _mean(layers: Mapping[str, float]) -> float:
    return sum(layers.values()) / len(layers)


def _log_energy(drift: Tensor) -> float:
    return math.log(max(float(drift.square().mean()), _LEAST_DRIFT))


def _expected(graph: FloatGraph, layer: Layer, measured: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (O,) of a layer's outputs as training saw them, or as the images show them.

    A channel that hardly varies is measured with the layer's typical deviation: its own would make noise a drift.
    """
    norm, (mean, deviation) = graph.batch_norms.get(layer.name), measured
    if norm is not None:
        mean, deviation = norm.shift, norm.factor.abs() * norm.variance.clamp_min(0).sqrt()
    typical = float(deviation.square().mean().sqrt())
    return mean, deviation.clamp_min(max(0.1 * typical, _LEAST_DEVIATION))


@torch.no_grad()
def _measured(module: fx.GraphModule, graph: FloatGraph, images: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and standard deviation (O,) of every layer's outputs, by layer name."""
    recorder = _Recorder(module, graph)
    for batch in torch.split(images, _BATCH):
        recorder.run(batch)
    return {name: recorder.result(name) for name in recorder.count}


class _Recorder(fx.Interpreter):
    """Running sums of all layers' outputs, by channel."""

    def __init__(self, module: fx.GraphModule, graph: FloatGraph) -> None:
        super().__init__(module)
        self.layers = {layer.node: layer for layer in graph.layers}
        self.sums: dict[str, Tensor] = {}
        self.squares: dict[str, Tensor] = {}
        self.count: dict[str, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self.layers:
            layer = self.layers[n.name]
            self._add(layer.name, value.movedim(1 if layer.kind == "conv" else -1, 0).flatten(1))
        return value

    def _add(self, name: str, rows: Tensor) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + rows.sum(1)
        self.squares[name] = self.squares.get(name, 0.0) + rows.square().sum(1)
        self.count[name] = self.count.get(name, 0) + rows.shape[1]

    def result(self, name: str) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation."""
        mean = self.sums[name] / self.count[name]
        return mean, (self.squares[name] / self.count[name] - mean.square()).clamp_min(0).sqrt()
