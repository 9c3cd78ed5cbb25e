"""Bias correction: after a layer is rounded, give its outputs the mean that they have in the float network.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, the empirical form
(section 4.2): b' = b + E[W x] - E[V x'] per output channel, over images and positions, with x' behind the layers that
are rounded (and corrected) already. Deviations: the means are those of calibration images, never of assumed Gaussian
inputs; b' is rounded to the accumulator's int32 grid where biases are integers, and stays float where they are not.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from quantinel.quantization.nodes import along
from quantinel.quantization.quantized_model import QuantizedLayer, with_bias


def correct_bias(
    layer: QuantizedLayer, bias: Tensor, expected: Tensor, actual: Tensor, dimension: int
) -> tuple[QuantizedLayer, Tensor]:
    """The layer with its corrected bias.

    Args:
        layer: as rounded.
        bias: the float bias (O,).
        expected: outputs of the float layer in the float network.
        actual: outputs of the rounded layer in the quantized network, with the float bias.
        dimension: of the channels.

    Returns:
        The layer, and what must be added to ``actual``, shaped for it.
    """
    others = [index for index in range(actual.ndim) if index != dimension % actual.ndim]
    shift = expected.mean(dim=others) - actual.mean(dim=others)
    if layer.bias_scale is None:
        corrected = replace(layer, float_bias=bias + shift)
    else:
        corrected = with_bias(layer, bias + shift, layer.bias_scale)
    stored = corrected.bias()
    assert stored is not None
    return corrected, along(stored - bias, actual, dimension)
