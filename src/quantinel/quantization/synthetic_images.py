"""Calibration images for a network whose data are not at hand: noise, pulled to what its BatchNorms remember.

Natural pictures have a spectrum that falls with frequency, so the start is 1/f noise. Where BatchNorm was folded, the
pixels are then moved until the outputs of every such layer have, over the batch, the running mean and deviation that
training left there: the distilled data of Cai et al., "ZeroQ: A Novel Zero Shot Quantization Framework", CVPR 2020.
Deviations: the start is 1/f instead of white noise, distances are in running deviations instead of raw units (so that
every layer counts alike, whatever the folding did to its scale), and pixels stay in [0, 1]. Networks without BatchNorm
get the noise itself.

Such images reach the ranges of the real ones roughly, and know nothing of classes: what is calibrated on them is
weaker, and nothing can be evaluated on them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from quantinel.data.images import ImageSet
from quantinel.errors import UsageError
from quantinel.model.batch_norm import FoldedBatchNorm
from quantinel.model.graph import FloatGraph
from quantinel.quantization.calibration import Progress

SYNTHETIC = "synthetic"
"""Name of such a set of images."""
SYNTHETIC_IMAGES = 64
"""How many are made by default; more add time and little else, for they have the same few moments in common."""

_MEAN, _DEVIATION = 0.5, 0.25
"""Of the pixels at the start: mid-grey at the contrast of ordinary photographs."""
_COLOUR = 0.3
"""Contrast that channels do not share; photographs are nearly grey at every scale."""
_LEARNING_RATE = 0.05
_BATCH_PIXELS = 1 << 16
"""Pixels of a batch: 64 images of 32x32; larger ones come in smaller batches, but not below `_SMALLEST_BATCH`."""
_SMALLEST_BATCH = 8


def synthetic_images(
    graph: FloatGraph,
    count: int = SYNTHETIC_IMAGES,
    *,
    steps: int = 40,
    seed: int = 0,
    progress: Progress | None = None,
) -> ImageSet:
    """Make images of the network's input shape, without labels.

    Args:
        graph: folded float network.
        count: images, at least 2.
        steps: of Adam for each batch; networks without BatchNorm take none.
        seed: of the noise.
        progress: called after every batch.

    Raises:
        UsageError: fewer than 2 images.
    """
    if count < 2:
        raise UsageError(f"{count} synthetic images are too few to calibrate on; ask for at least 2")
    pixels = pink_noise(count, graph.input_shape, torch.Generator().manual_seed(seed))
    if graph.batch_norms and steps > 0:
        size = max(_SMALLEST_BATCH, _BATCH_PIXELS // (graph.input_shape[1] * graph.input_shape[2]))
        parts = []
        for batch in pixels.split(size):
            parts.append(_matched(graph, batch, steps))
            if progress is not None:
                progress("make images", len(parts), -(-count // size))
        pixels = torch.cat(parts)
    return ImageSet((pixels * 255.0).round().to(torch.uint8), None, SYNTHETIC)


def pink_noise(count: int, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """Noise whose amplitude falls as 1/f, float32 (N, C, H, W) in [0, 1]; channels share most of it."""
    channels, height, width = shape
    rows, columns = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None]
    frequency = (rows.square() + columns.square()).sqrt()
    frequency[0, 0] = torch.inf  # no constant part
    white = torch.randn(count, 1 + channels, height, width, generator=generator)
    noise = torch.fft.irfft2(torch.fft.rfft2(white) / frequency, s=(height, width))
    noise = noise[:, :1] + _COLOUR * noise[:, 1:]
    deviation = noise.flatten(1).std(dim=1).clamp_min(1e-12)
    return (_MEAN + _DEVIATION * noise / deviation[:, None, None, None]).clamp(0.0, 1.0)


def statistics_distance(graph: FloatGraph, pixels: Tensor) -> Tensor:
    """How far the layers' outputs are from what their BatchNorms remember; differentiable, a scalar.

    The mean over layers and living channels of (mean - running mean)^2 / running variance + (deviation / running
    deviation - 1)^2, over images and positions.

    Args:
        graph: with BatchNorm folded into at least one layer.
        pixels: (N, C, H, W) in [0, 1].
    """
    norms = {layer.node: graph.batch_norms[layer.name] for layer in graph.layers if layer.name in graph.batch_norms}
    distances: list[Tensor] = []

    class Watch(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if n.name in norms:
                distances.append(_distance(value, norms[n.name]))
            return value

    Watch(graph.module).run(pixels)
    return torch.stack(distances).mean()


def _distance(outputs: Tensor, norm: FoldedBatchNorm) -> Tensor:
    alive = norm.factor != 0
    if not alive.any():
        return outputs.sum() * 0.0
    seen = norm.undo(outputs).transpose(0, 1).flatten(1)[alive]
    variance = norm.variance[alive].clamp_min(1e-12)
    mean_off = (seen.mean(dim=1) - norm.mean[alive]).square() / variance
    deviation = (seen.var(dim=1, correction=0) / variance + 1e-12).sqrt()
    return (mean_off + (deviation - 1.0).square()).mean()


def _matched(graph: FloatGraph, start: Tensor, steps: int) -> Tensor:
    """Pixels after the descent."""
    pixels = start.clone().requires_grad_(True)
    optimiser = torch.optim.Adam([pixels], lr=_LEARNING_RATE)
    for _ in range(steps):
        loss = statistics_distance(graph, pixels)
        if not torch.isfinite(loss):
            return start  # a network that overflows on noise: the noise is all there is
        (pixels.grad,) = torch.autograd.grad(loss, pixels)
        optimiser.step()
        with torch.no_grad():
            pixels.clamp_(0.0, 1.0)
    return pixels.detach()
