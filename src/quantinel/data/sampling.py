"""Random subsets of a set of images: seeded, balanced over the classes, and never overlapping."""

from __future__ import annotations

import torch
from torch import Tensor

from quantinel.data.images import ImageSet
from quantinel.errors import InputError, UsageError

MIN_CALIBRATION = 2
RECOMMENDED_CALIBRATION = 256
MIN_EVALUATION = 32
"""Fewer different images than this say too little about a model's answers."""


def balanced_indices(labels: Tensor | None, total: int, count: int, seed: int) -> Tensor:
    """``count`` of ``total`` indices, in ascending order.

    With labels the classes get equal shares; a class with fewer images gives all it has, the others fill up.

    Args:
        labels: (total,) int64, or None for a plain random subset.
        total: images in the set.
        count: images wanted, at most ``total``.
        seed: of the choice.

    Returns:
        (count,) int64.
    """
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    if labels is not None and total:
        shuffled = labels[order]
        by_class = shuffled.argsort(stable=True)
        position = torch.arange(total)
        is_first = shuffled[by_class].diff(prepend=shuffled[by_class[:1]] - 1) != 0
        start = torch.where(is_first, position, 0).cummax(0).values
        rank = torch.empty_like(order)  # of each image within its class, in random order
        rank[by_class] = position - start
        order = order[rank.argsort(stable=True)]  # the first of each class, then the second of each, ...
    return order[:count].sort().values


def split_calibration(images: ImageSet, calibration: int, seed: int) -> tuple[ImageSet, ImageSet]:
    """Calibration images, and the rest for evaluation. No image is in both.

    Labelled sets are split class-balanced, and at most half of one is taken, so that accuracy can still be
    measured on images that no defense has seen; ask for the length of the first set when the count matters.
    Unlabelled sets give as many as were asked for, but a fifth of the set is kept, and at least `MIN_EVALUATION` of a
    set that is twice as large: without images that calibration has not seen, nothing shows that the deployed file
    answers as the float model. Near-duplicates (frames of one video or track) are separate images here.

    Args:
        images: N images.
        calibration: images to calibrate on; 256 are recommended.
        seed: of the choice.

    Returns:
        (calibration, rest), both in the original order.

    Raises:
        UsageError: fewer than 2 calibration images are asked for.
        InputError: the set is too small to give 2 (labelled: 2, and 2 for evaluation).
    """
    if calibration < MIN_CALIBRATION:
        raise UsageError(
            f"{calibration} calibration images are too few: at least {MIN_CALIBRATION} are needed and "
            f"{RECOMMENDED_CALIBRATION} recommended"
        )
    total = len(images)
    kept = max(total // 5, MIN_EVALUATION if total >= 2 * MIN_EVALUATION else 0)
    count = min(calibration, total - kept if images.labels is None else total // 2)
    if count < MIN_CALIBRATION:
        needed = MIN_CALIBRATION if images.labels is None else 2 * MIN_CALIBRATION
        raise InputError(
            f"{images.name} has {total} images, at least {needed} are needed to calibrate"
            f"{'' if images.labels is None else ' and evaluate'}; "
            f"{RECOMMENDED_CALIBRATION} and more are recommended"
        )
    chosen = balanced_indices(images.labels, total, count, seed)
    rest = torch.ones(total, dtype=torch.bool)
    rest[chosen] = False
    return images.take(chosen), images.take(rest.nonzero()[:, 0])
