"""Layer coherence: do the rounding errors of one neuron add up on the inputs that it really receives?

For a neuron with rounding errors r (D,) and inputs x, E (r x)^2 = r H r^T with H = E[x x^T]; with random signs its
expectation is sum_j r_j^2 H_jj. An attack that projects weights into rounding cells pushes the errors of a neuron in
one direction of the inputs, and the ratio of the two rises, whatever the histogram of single errors looks like. The
histogram's shape can be chosen freely within the cells, this cannot without giving up the backdoor.

Null hypothesis: the signs of the errors are exchangeable. The figure is the mean over neurons of the logarithm of the
ratio, over all layers and in each; the smaller of the two p-values counts, times two, that of the layers times their
number. Copies with random signs are cheap here because each needs H and no forward pass. Joint losses without
projection spread their backdoor over all layers and leave little in any one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from quantinel.detectors.behaviour import sampled
from quantinel.detectors.controls import compare, smallest, surprise
from quantinel.detectors.subject import ALREADY_ON_GRID, Detection, Subject
from quantinel.inversion.rounding_errors import RoundingErrors
from quantinel.model.graph import FloatGraph, Layer
from quantinel.quantization.moments import Moments
from quantinel.quantization.statistics import input_statistics
from quantinel.validation import require_positive_integers

_HURRY_SECONDS = 10.0
_HURRIED_COPIES = 19
_LEAST_SPREAD = 1e-6
_LEAST_RATIO = 1e-6


@dataclass(frozen=True)
class LayerCoherence:
    """The detector's options.

    Attributes:
        images: of the user's, at most.
        positions: input vectors of a layer, at most about.
        copies: controls.
    """

    images: int = 48
    positions: int = 4096
    copies: int = 99

    def __post_init__(self) -> None:
        require_positive_integers(self, "images", "positions", "copies")


def detect(subject: Subject, options: LayerCoherence) -> Detection:
    """Score: -log10 of the p-value.

    Raises:
        NotAssessable: fewer than two images.
    """
    images = sampled(subject, options.images)
    errors = subject.rounding_errors
    if not errors.moved:
        return ALREADY_ON_GRID
    copies, notes = options.copies, tuple[str, ...]()
    if subject.budget.remaining() < _HURRY_SECONDS and copies > _HURRIED_COPIES:
        copies = _HURRIED_COPIES
        notes = (f"{copies} of {options.copies} control copies in the time that was left; small effects can be missed",)
    walk = _Walk(subject.graph, errors, copies, options.positions, subject.seed)
    with torch.inference_mode():
        walk.run(images)
    sums = torch.stack(list(walk.ratios.values())).sum(0)
    whole = compare(float(sums[0]), sums[1:].tolist(), _LEAST_SPREAD)
    layers = {
        name: compare(float(ratios[0]), ratios[1:].tolist(), _LEAST_SPREAD) for name, ratios in walk.ratios.items()
    }
    in_one_layer = smallest([layer.p_value for layer in layers.values()])
    p_value = smallest([whole.p_value, in_one_layer])
    neurons = max(walk.neurons, 1)
    return Detection(
        surprise(p_value),
        {
            "ratio": math.exp(float(sums[0]) / neurons),
            "ratio_of_copies": math.exp(float(sums[1:].mean()) / neurons),
            "z": whole.z,
            "largest_layer_z": max(layer.z for layer in layers.values()),
            "rank_p_value": whole.rank_p_value,
            "copies": float(len(sums) - 1),
        },
        p_value=p_value,
        by_layer={name: layer.z for name, layer in layers.items()},
        notes=notes,
    )


class _Walk(fx.Interpreter):
    """One pass through the float network; every layer is measured when its input is there, and the input forgotten.

    Attributes:
        ratios: by layer name, (1 + copies,) sum over neurons of the log ratio, the nearest rounding's first.
        neurons: with errors, in all layers.
    """

    def __init__(self, graph: FloatGraph, errors: RoundingErrors, copies: int, positions: int, seed: int) -> None:
        super().__init__(graph.module)
        self.errors, self.copies, self.positions = errors, copies, positions
        self.layers = {layer.node: layer for layer in graph.layers}
        self.generator = torch.Generator().manual_seed(seed)
        self.ratios: dict[str, Tensor] = {}
        self.neurons = 0

    def run_node(self, n: fx.Node) -> Any:
        if n.name in self.layers:
            self._measure(self.layers[n.name], n)
        return super().run_node(n)

    def _measure(self, layer: Layer, node: fx.Node) -> None:
        error, source = self.errors.errors[layer.weight], node.args[0]
        assert isinstance(source, fx.Node)
        x = self.env[source]
        statistics = input_statistics(layer, node, error, x, x, max_positions=self.positions, generator=self.generator)
        chance = _by_neuron(error.square(), layer.groups) @ statistics.moments.diagonal().unsqueeze(2)
        alive = chance.squeeze(2) > 0
        self.neurons += int(alive.sum())
        found = []
        for index in range(1 + self.copies):
            signed = error if index == 0 else self.errors.with_random_signs(layer.weight, self.generator)
            energy = _energy(statistics.moments, _by_neuron(signed, layer.groups))
            ratio = energy.clamp_min(0)[alive] / chance.squeeze(2)[alive]
            found.append(ratio.clamp_min(_LEAST_RATIO).log().sum())
        self.ratios[layer.name] = torch.stack(found).double()


def _by_neuron(error: Tensor, groups: int) -> Tensor:
    """(G, O / G, D)."""
    return error.reshape(groups, error.shape[0] // groups, -1)


def _energy(moments: Moments, error: Tensor) -> Tensor:
    """r H r^T of every neuron, (G, O / G)."""
    gradient = moments.gradient(error)
    return (error * gradient.columns(0, error.shape[2])).sum(2)
