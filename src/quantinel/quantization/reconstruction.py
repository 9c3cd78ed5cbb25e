"""Choose integers layer by layer while two copies of the network run side by side.

One walk over the graph carries, for all calibration images (and for stamped copies of them, where a method asks for
some), the value of every live tensor in the float network and in the network whose earlier layers are already rounded.
At each layer a `RoundingMethod` sees the weight, its grid and (if it asks) the second moments of both inputs, and
returns the codes. The integers of a layer depend on those before it, so these moments cannot be collected in the
calibration pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from quantinel.data.images import ImageSet
from quantinel.errors import UnsupportedError
from quantinel.model.graph import FloatGraph
from quantinel.quantization.calibration import Calibration, Progress
from quantinel.quantization.layer_problem import (
    BiasOption,
    BlockOption,
    Chain,
    LayerOutcome,
    LayerProblem,
    LeaningMethod,
    Needs,
    PreparedMethod,
    RoundingMethod,
    Stamp,
    StampingMethod,
)
from quantinel.quantization.quantized_model import QuantizedModel, quantize_nearest
from quantinel.quantization.walk import Walk
from quantinel.validation import require_types

__all__ = [
    "BiasOption",
    "BlockOption",
    "Chain",
    "LayerOutcome",
    "LayerProblem",
    "LeaningMethod",
    "Needs",
    "PreparedMethod",
    "RoundingMethod",
    "Stamp",
    "StampingMethod",
    "choose_codes",
]


def choose_codes(
    graph: FloatGraph,
    calibration: Calibration,
    method: RoundingMethod,
    *,
    max_positions: int | None = None,
    memory: int = 1 << 30,
    seed: int = 0,
    bias_correction: bool | None = None,
    progress: Progress | None = None,
) -> tuple[QuantizedModel, tuple[LayerOutcome, ...]]:
    """Choose the integers of every layer with ``method``.

    Args:
        graph: folded float network.
        calibration: activation parameters and calibration images.
        method: how to round.
        max_positions: input vectors per layer for second moments; more are sampled. By default 4,096, or eight for
            each input of a layer's weight where that is more (moments of wider layers need more vectors), of the bare
            images and of every stamped copy.
        memory: bytes that the largest activation tensor may take, stamped copies included; where all calibration images
            together exceed it, the walk uses as many as fit (at least 2), from all over the set.
        seed: of that sample, and of methods that choose at random.
        bias_correction: see `bias_correction`; None leaves it to the method's own option. Layers without a bias
            have nowhere to put a correction and stay as they are.
        progress: called after each layer.

    Returns:
        The quantized model and one outcome per layer.

    Raises:
        UnsupportedError: the method needs BatchNorm, and the network has none behind a convolution.
        UsageError: an option of the method is of another kind than its annotation.
    """
    require_types(method)
    if isinstance(method, PreparedMethod):
        method = method.prepared(
            lambda other: choose_codes(
                graph, calibration, other, max_positions=max_positions, memory=memory, seed=seed, progress=progress
            )[1]
        )
    if bias_correction is None:
        bias_correction = isinstance(method, BiasOption) and method.bias_correction
    if method.needs == "batch-norm" and not _normalised_convolutions(graph):
        raise UnsupportedError(
            f"{method.name} is not applicable: it needs the running statistics of BatchNorm behind convolutions, and "
            "this network has none (saved after folding, or without BatchNorm there); take lac, which does without"
        )
    with torch.inference_mode(mode=False), torch.enable_grad():  # a method may search by gradient
        nearest = quantize_nearest(graph, calibration)
        stamps: Sequence[Stamp] = ()
        if isinstance(method, StampingMethod):
            if progress is not None:
                progress("search", 0, 1)
            stamps = method.stamps(graph, calibration, nearest, seed)
            if progress is not None:
                progress("search", 1, 1)
    blind = method.needs == "weights" and not bias_correction
    with torch.inference_mode():
        if not blind:
            fitting = max(2, memory // (_largest_activation(graph, calibration) * (1 + len(stamps))))
            calibration = replace(calibration, images=_spread(calibration.images, fitting))
        walk = Walk(graph, calibration, nearest, method, stamps, max_positions, seed, bias_correction, progress)
        if blind:
            for layer in graph.layers:
                walk.choose(layer, None)
        else:
            walk.run_all()
        return nearest.with_layers(walk.corrected).with_codes(walk.codes), tuple(walk.outcomes)


def _normalised_convolutions(graph: FloatGraph) -> bool:
    return any(layer.kind == "conv" and layer.name in graph.batch_norms for layer in graph.layers)


def _spread(images: ImageSet, fitting: int) -> ImageSet:
    """As many images as fit, from all over the set: sets are often sorted by class."""
    count = len(images)
    fitting = min(fitting, count)
    return images.take(torch.arange(fitting) * count // fitting)


def _largest_activation(graph: FloatGraph, calibration: Calibration) -> int:
    """Bytes of the largest intermediate tensor of one image."""
    sizes = [1]

    class Measure(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, Tensor) and n.op != "get_attr":
                sizes.append(value.numel() * value.element_size() // 2)
            return value

    Measure(graph.module).run(calibration.images.take(torch.arange(2)).as_float())
    return max(sizes)
