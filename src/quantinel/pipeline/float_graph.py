"""The float network as a graph, held against the model itself on some of the user's images."""

from __future__ import annotations

import torch

from quantinel.data.images import ImageSet, as_float
from quantinel.model.graph import FloatGraph, check_same_answers, trace
from quantinel.model.loading import LoadedModel

_IMAGES = 8
_TOLERANCE = 1e-2
"""Wider than on random images: folding moves the logits of a deep network by rounding."""


def float_graph(model: LoadedModel, images: ImageSet | None) -> FloatGraph:
    """Trace and fold; everything is judged on the graph, so it must answer as the model does.

    Args:
        model: the float model.
        images: of which a few are compared; none where there are none, or where they are not of the model's shape.

    Raises:
        UnsupportedError: the model cannot be traced, or its graph answers otherwise.
    """
    graph = trace(model.module, model.input_shape)
    if images is None or len(images) == 0 or images.shape != model.input_shape:
        return graph
    chosen = torch.linspace(0, len(images) - 1, min(_IMAGES, len(images))).long()
    pixels = as_float(images.images[chosen])
    with torch.inference_mode():
        expected = model.module(pixels.clone())
    check_same_answers(expected, graph(pixels), f"images of {images.name}", _TOLERANCE)
    return graph
