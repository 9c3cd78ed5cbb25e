"""One layer of a shipped file held against its float weights: roundings, range of the grid, bias."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quantinel.backends.layer_matching import correlation
from quantinel.backends.onnx_constants import Array
from quantinel.backends.shipped_layers import ShippedLayer
from quantinel.model.graph import FloatGraph, Layer

_TIE = 1e-3
"""Weights this close to the middle between two codes may round either way: folding differs in the last digits."""


@dataclass(frozen=True)
class LayerDifference:
    """One layer of the file against the float weights.

    Attributes:
        name: of the float model.
        shipped: name in the file.
        weights: compared.
        other: share of weights that are not rounded to nearest (clipping is part of nearest rounding).
        beyond: share further than one code from the weight: no rounding, up or down, gives these.
        largest: largest distance between code and weight, in steps.
        coverage: (smallest, largest) range of the grid over the range of the weights; 1 for min-max scales.
        asymmetric: whether zero points differ from the middle of the grid.
        correlation: cosine of the file's weights and the float weights.
        nearest_correlation: what nearest rounding on the file's grid would have.
        energy: mean over output channels of (sum of e)^2 / sum of e^2, e = code - weight in steps: 1 where rounding
            errors are independent, larger where they pull one way.
        bias: largest difference of the biases that rounding them does not explain, relative to the largest float bias;
            None where not compared. Rounding is half a step of the bias's grid, and at most of the weight's.
    """

    name: str
    shipped: str
    weights: int
    other: float
    beyond: float
    largest: float
    coverage: tuple[float, float]
    asymmetric: bool
    correlation: float
    nearest_correlation: float
    energy: float
    bias: float | None


def _rows(weight: Array) -> Array:
    return weight.reshape(len(weight), -1)


def layer_difference(graph: FloatGraph, layer: Layer, item: ShippedLayer) -> LayerDifference:
    """Compare the integers of a file's layer with the weights of the float model's.

    Args:
        graph: folded float network.
        layer: of it.
        item: with codes, of the same number of weights.
    """
    assert item.codes is not None
    assert item.scale is not None
    assert item.zero_point is not None
    assert item.weight is not None
    weight = _rows(graph.weight(layer).detach().double().numpy())
    codes = _rows(item.codes) - item.zero_point.reshape(-1, 1)
    scale = item.scale.reshape(-1, 1)
    steps = weight / scale
    low, high = _limits(item, codes)
    wanted = np.clip(np.rint(steps), low, high)
    tie = np.abs(np.abs(steps - np.trunc(steps)) - 0.5) < _TIE
    error = codes - np.clip(steps, low, high)
    other = (codes != wanted) & ~(tie & (np.abs(error) <= 0.5 + _TIE))
    squared = np.square(error).sum(1)
    moving = squared > 0
    pull = np.square(error.sum(1))[moving] / squared[moving]
    return LayerDifference(
        layer.name,
        item.name,
        weight.size,
        float(other.mean()),
        float((np.abs(error) > 1.0 + _TIE).mean()),
        float(np.abs(error).max()),
        _coverage(weight, scale, low, high),
        is_asymmetric(item),
        correlation(weight.ravel(), _rows(item.weight).ravel()),
        correlation(weight.ravel(), (wanted * scale).ravel()),
        float(pull.mean()) if pull.size else 1.0,
        _bias_difference(graph, layer, item),
    )


def is_asymmetric(item: ShippedLayer) -> bool:
    """Whether zero points differ from the middle of the storage: 0 for signed, 128 for unsigned bytes."""
    assert item.codes is not None
    assert item.zero_point is not None
    return not (
        np.all(item.zero_point == 0) or (item.codes.min() >= 0 and np.all(item.zero_point == item.span // 2 + 1))
    )


def _limits(item: ShippedLayer, codes: Array) -> tuple[Array, Array]:
    """Lowest and highest code less the zero point, (O, 1) or (1, 1).

    Symmetric grids of few bits are stored in wider types, so their limits are those of the fewest bits that hold all
    codes.
    """
    assert item.codes is not None
    assert item.zero_point is not None
    zero = item.zero_point.reshape(-1, 1)
    if is_asymmetric(item):
        first = 0 if item.codes.min() >= 0 else -(int(item.span) // 2 + 1)
        return first - zero, first + int(item.span) - zero
    bits = 1
    while codes.max() > (1 << bits) - 1 or codes.min() < -(1 << bits):
        bits += 1
    high = np.full((1, 1), (1 << bits) - 1)
    return (-high - 1 if codes.min() < -high.item() else -high), high


def _coverage(weight: Array, scale: Array, low: Array, high: Array) -> tuple[float, float]:
    """Smallest and largest range of a grid over the range of its weights."""
    axis = 1 if len(scale) > 1 else None
    top = np.maximum(weight.max(axis, keepdims=True), 0.0)
    bottom = np.minimum(weight.min(axis, keepdims=True), 0.0)
    symmetric = np.all(low >= -high - 1) and np.all(-low >= high)
    wanted = np.maximum(top, -bottom) if symmetric else top - bottom
    given = (high if symmetric else high - low) * scale
    wanted, given = np.broadcast_arrays(wanted, given)
    covered = given[wanted > 0] / wanted[wanted > 0]
    return (float(covered.min()), float(covered.max())) if covered.size else (1.0, 1.0)


def _bias_difference(graph: FloatGraph, layer: Layer, item: ShippedLayer) -> float | None:
    bias = graph.bias(layer)
    if bias is None or item.bias is None:
        return None
    assert item.scale is not None
    expected = bias.detach().double().numpy()
    rounding = 0.0 if item.bias_step is None else np.minimum(item.bias_step, item.scale) * (0.5 + _TIE)
    difference = np.abs(item.bias - expected)
    difference[difference <= rounding] = 0.0
    return float(difference.max() / max(float(np.abs(expected).max()), 1e-30))
