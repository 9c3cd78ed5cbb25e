"""Which layer of a file belongs to which layer of the float model: by shape first, then by content, name and order."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from quantinel.backends.onnx_constants import Array
from quantinel.backends.shipped_layers import ShippedLayer
from quantinel.model.graph import FloatGraph, Layer

_SAMPLE = 4096
"""Weights that are compared to tell layers of one shape apart."""
_NAME, _ORDER = 0.5, 0.01
"""Worth of an equal name and cost of a place further away, in units of correlation: hints only."""


@dataclass(frozen=True)
class Matching:
    """Pairs, and what is left on either side.

    Attributes:
        pairs: (layer of the float model, layer of the file), in the order of the float model.
        missing: layers of the float model without a counterpart.
        additional: layers of the file without one.
        reordered: names of layers of the float model that the file runs before one that comes earlier there.
    """

    pairs: tuple[tuple[Layer, ShippedLayer], ...]
    missing: tuple[Layer, ...]
    additional: tuple[ShippedLayer, ...]
    reordered: tuple[str, ...]


def match_layers(graph: FloatGraph, shipped: Sequence[ShippedLayer]) -> Matching:
    """Match layers of equal shape; a layer that occurs on one side only stays alone.

    Among layers of one shape, those pairs are chosen whose weights correlate most (Hungarian method), so that neither
    renamed nor reordered operators are mistaken. A layer whose weights were replaced still finds its place, by name
    and order.
    """
    matrices = {tuple(graph.weight(layer).shape) for layer in graph.layers if layer.kernel}
    floats: dict[tuple[int, ...], list[int]] = {}
    files: dict[tuple[int, ...], list[int]] = {}
    for index, layer in enumerate(graph.layers):
        floats.setdefault(_form(tuple(graph.weight(layer).shape), matrices), []).append(index)
    for index, item in enumerate(shipped):
        if not item.problem:
            files.setdefault(_form(item.shape, matrices), []).append(index)
    chosen: dict[int, int] = {}
    for form in floats.keys() & files.keys():
        mine, theirs = floats[form], files[form]
        worth = np.array([[_worth(graph, a, shipped[b]) - _ORDER * abs(i - j) for j, b in enumerate(theirs)]
                          for i, a in enumerate(mine)])  # fmt: skip
        for row, column in zip(*linear_sum_assignment(worth, maximize=True), strict=True):
            chosen[mine[row]] = theirs[column]
    used = set(chosen.values())
    return Matching(
        tuple((graph.layers[index], shipped[chosen[index]]) for index in sorted(chosen)),
        tuple(layer for index, layer in enumerate(graph.layers) if index not in chosen),
        tuple(item for index, item in enumerate(shipped) if index not in used),
        tuple(graph.layers[index].name for index in _falling(chosen)),
    )


def _falling(chosen: Mapping[int, int]) -> list[int]:
    """Layers whose place in the file comes before that of an earlier layer."""
    found, furthest = [], -1
    for index in sorted(chosen):
        if chosen[index] < furthest:
            found.append(index)
        furthest = max(furthest, chosen[index])
    return found


def _form(shape: tuple[int, ...], matrices: Set[tuple[int, ...]]) -> tuple[int, ...]:
    """A 1x1 convolution is a linear layer to some exporters, as one with these matrices is here."""
    matrix = (shape[0], math.prod(shape[1:]))
    if matrix in matrices:
        return matrix
    return shape[:2] if all(size == 1 for size in shape[2:]) else shape


def _worth(graph: FloatGraph, index: int, item: ShippedLayer) -> float:
    layer = graph.layers[index]
    weight = graph.weight(layer).detach().double().numpy().reshape(-1)
    assert item.weight is not None
    step = max(1, weight.size // _SAMPLE)
    return correlation(weight[::step], item.weight.reshape(-1)[::step]) + _NAME * (layer.name in item.name)


def correlation(a: Array, b: Array) -> float:
    """Cosine of two vectors; 0 where one is zero or not finite."""
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    value = float(a @ b) / size if size > 0 else 0.0
    return value if np.isfinite(value) else 0.0
