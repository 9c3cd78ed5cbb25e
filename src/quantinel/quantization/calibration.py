"""One pass over the calibration images: the range of every quantization point."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from quantinel.data.images import ImageSet
from quantinel.errors import InputError, UsageError
from quantinel.model.graph import FloatGraph
from quantinel.quantization.fake_quantize import fake_quantize
from quantinel.quantization.placement import Placement, place
from quantinel.quantization.ranges import affine_parameters
from quantinel.quantization.scheme import QuantScheme

Progress = Callable[[str, int, int], None]
"""``progress(what, done, total)``."""

_SAMPLES = 1 << 18
"""Values kept per point for the percentile and least-squares rules."""
_SEARCH_STEPS = 95
"""Candidates of the least-squares search, as in the released configuration of EFRAP."""


@dataclass(frozen=True)
class ActivationParameters:
    """Unsigned affine grid of one point: value = (code - zero_point) * scale, code in 0..levels."""

    scale: float
    zero_point: int


@dataclass(frozen=True)
class Calibration:
    """What one pass over the calibration images gave.

    Attributes:
        scheme: the grid.
        placement: where activations are quantized; empty unless the scheme is static or dynamic.
        activations: parameters by point (ties share their root's); empty unless the scheme is static.
        output_step: range of the logits over the levels of the activation grid (255 at 8 bits): the unit of logit
            differences, as coarse as the activations are.
        images: the calibration images themselves; defenses that reconstruct layers read them again.
    """

    scheme: QuantScheme
    placement: Placement
    activations: dict[str, ActivationParameters]
    output_step: float
    images: ImageSet


class _Range:
    """Running minimum, maximum and a sample of the values of one point."""

    def __init__(self, keep_sample: bool) -> None:
        self.low, self.high, self.finite = 0.0, 0.0, True
        self.keep_sample = keep_sample
        self.sample: list[Tensor] = []

    def update(self, value: Tensor, share: float, generator: torch.Generator) -> None:
        low, high = (float(bound) for bound in torch.aminmax(value))
        self.finite = self.finite and math.isfinite(low) and math.isfinite(high)
        self.low, self.high = min(self.low, low), max(self.high, high)
        if self.keep_sample:
            flat = value.flatten()
            count = max(1, int(_SAMPLES * share))
            if flat.numel() > count:
                flat = flat[torch.randint(flat.numel(), (count,), generator=generator)]
            self.sample.append(flat.clone())

    def parameters(self, scheme: QuantScheme) -> ActivationParameters:
        levels = scheme.activation_max
        if scheme.activation_range == "minmax":
            return ActivationParameters(*affine_parameters(self.low, self.high, levels))
        values = torch.cat(self.sample)
        if scheme.activation_range == "percentile":
            tail = 1.0 - scheme.activation_percentile / 100.0
            low, high = torch.quantile(values, torch.tensor([tail, 1.0 - tail])).tolist()
            return ActivationParameters(*affine_parameters(low, high, levels))
        best, best_error = affine_parameters(self.low, self.high, levels), float("inf")
        for step in range(_SEARCH_STEPS):
            shrink = 1.0 - 0.01 * step
            scale, zero = affine_parameters(self.low * shrink, self.high * shrink, levels)
            rounded = fake_quantize(values, scale, zero, levels)
            error = float((rounded - values).square().sum())
            if error < best_error:
                best, best_error = (scale, zero), error
        return ActivationParameters(*best)


class _Observer(fx.Interpreter):
    def __init__(self, graph: FloatGraph, roots: set[str], keep_sample: bool, generator: torch.Generator) -> None:
        super().__init__(graph.module)
        self.ranges = {root: _Range(keep_sample) for root in roots}
        self.share = 1.0
        self.generator = generator

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self.ranges:
            self.ranges[n.name].update(value, self.share, self.generator)
        return value


@torch.inference_mode()
def calibrate(
    graph: FloatGraph,
    images: ImageSet,
    scheme: QuantScheme,
    *,
    batch_size: int = 64,
    seed: int = 0,
    progress: Progress | None = None,
) -> Calibration:
    """Measure activation ranges on ``images`` in one pass.

    Args:
        graph: folded float network.
        images: unlabeled calibration images of the network's input shape.
        scheme: the grid.
        batch_size: images a step.
        seed: of the value samples that the percentile and least-squares rules use.
        progress: called after each batch.

    Raises:
        UsageError: fewer than two images.
        InputError: images of another shape, or the network's outputs, or values that are to be quantized, are not
            finite on them.
    """
    if len(images) < 2:
        raise UsageError(f"calibration needs at least 2 images, got {len(images)}; 256 give stable ranges")
    if images.shape != graph.input_shape:
        raise InputError(
            f"the model takes images of shape {graph.input_shape}, {images.name} has {images.shape}; "
            "resize them or give the model's own data"
        )
    static = scheme.activations == "static"
    placement = Placement((), {}) if scheme.activations == "none" else place(graph, inputs_only=not static)
    roots = {placement.root(point) for point in placement.points} if static else set()
    generator = torch.Generator().manual_seed(seed)
    observer = _Observer(graph, roots, scheme.activation_range != "minmax", generator)
    low, high = float("inf"), float("-inf")
    done = 0
    for batch in images.batches(batch_size):
        observer.share = len(batch) / len(images)
        logits = observer.run(batch.contiguous(memory_format=torch.channels_last))
        if not torch.isfinite(logits).all():
            raise InputError(
                "the model gives outputs that are not finite on the calibration images; check its weights and "
                "the normalisation (--mean, --std)"
            )
        for point, values in observer.ranges.items():
            if not values.finite:
                raise InputError(
                    f"{point} is to be quantized and gives values that are not finite on the calibration images; check "
                    "the weights before it and the normalisation (--mean, --std)"
                )
        low, high = min(low, float(logits.min())), max(high, float(logits.max()))
        done += len(batch)
        if progress is not None:
            progress("calibrate", done, len(images))
    parameters = {root: observer.ranges[root].parameters(scheme) for root in roots}
    activations = {point: parameters[placement.root(point)] for point in placement.points} if static else {}
    return Calibration(scheme, placement, activations, max((high - low) / scheme.activation_max, 1e-12), images)
