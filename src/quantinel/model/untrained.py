"""A named architecture with random weights: where training from scratch begins."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from quantinel.errors import UsageError
from quantinel.model.loading import LoadedModel
from quantinel.model.normalization import Normalized
from quantinel.model.zoo import ARCHITECTURES, build


def untrained_model(
    architecture: str,
    num_classes: int,
    input_shape: tuple[int, int, int],
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int = 0,
) -> LoadedModel:
    """Build a named architecture with random weights.

    Args:
        architecture: as in ``quantinel list architectures``.
        num_classes: at least 2.
        input_shape: (C, H, W) of one image.
        mean, std: normalisation per channel of images in [0, 1]; without them the architecture's own.
        seed: of the weights; torch's global randomness stays as it is.

    Raises:
        UsageError: unknown architecture, an image size it cannot take, or one class only.
    """
    channels, height, width = input_shape
    if num_classes < 2:
        raise UsageError(f"a classifier with {num_classes} classes cannot be trained; give data with at least 2")
    if height != width:
        raise UsageError(f"images of {height}x{width} are not square; resize them with --input-shape C,H,H")
    if (mean is None) != (std is None):
        raise UsageError("mean and std go together; give both or neither")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build(architecture, num_classes, height, channels)
    known = ARCHITECTURES[architecture]
    mean, std = (known.mean, known.std) if mean is None or std is None else (mean, std)
    if min(len(mean), len(std)) < channels:
        raise UsageError(f"images have {channels} channels, mean and std {len(mean)}; give --mean and --std")
    module = Normalized(network, mean[:channels], std[:channels]).eval()
    return LoadedModel(module, architecture, f"untrained:{architecture}", input_shape, num_classes, None, architecture)
