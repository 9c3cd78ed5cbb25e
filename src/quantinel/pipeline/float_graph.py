"""The float network as a graph, held against the model itself on some of the user's images."""

from __future__ import annotations

import torch
from torch import Tensor

from quantinel.data.images import ImageSet, as_float
from quantinel.data.triggers import Trigger
from quantinel.model.graph import FloatGraph, trace
from quantinel.model.loading import LoadedModel
from quantinel.model.same_answers import check_same_answers
from quantinel.pipeline.measure import stamp

_IMAGES = 8
_TOLERANCE = 1e-2
"""Wider than on random images: folding moves the logits of a deep network by rounding."""


def float_graph(model: LoadedModel, images: ImageSet | None, trigger: Trigger | None = None) -> FloatGraph:
    """Trace and fold; everything is judged on the graph, so it must answer as the model does.

    Args:
        model: the float model.
        images: of which a few are compared; none where there are none, or where they are not of the model's shape.
        trigger: compared on these images with it too.

    Raises:
        UnsupportedError: the model cannot be traced, or its graph answers otherwise.
    """
    graph = trace(model.module, model.input_shape)
    if images is None or len(images) == 0 or images.shape != model.input_shape:
        return graph
    chosen = images.take(torch.linspace(0, len(images) - 1, min(_IMAGES, len(images))).long())
    _compare(model, graph, chosen.images, f"images of {images.name}")
    if trigger is not None:
        _compare(model, graph, stamp(chosen, trigger), f"images of {images.name} with the trigger")
    return graph


def _compare(model: LoadedModel, graph: FloatGraph, images: Tensor, what: str) -> None:
    pixels = as_float(images)
    with torch.inference_mode():
        expected = model.module(pixels.clone())
    check_same_answers(expected, graph(pixels), what, _TOLERANCE)
