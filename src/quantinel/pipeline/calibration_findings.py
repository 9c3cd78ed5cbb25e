"""What is wrong with a set of calibration images: ranges and integers are fitted to it, and to nothing else."""

from __future__ import annotations

from torch import Tensor

from quantinel.audit.report import Finding
from quantinel.data.copies import different
from quantinel.data.images import ImageSet

_LEAST_DIFFERENT = 0.5
_LARGEST_CLASS = 0.8
_FEWEST = 16
"""Fewer images say nothing of classes."""


def calibration_findings(images: ImageSet, answers: Tensor) -> list[Finding]:
    """Warnings about images that are copies of each other, or nearly all of one class.

    Args:
        images: that calibrated.
        answers: (N,) classes that the network gives them.
    """
    found = []
    count, distinct = len(images), different(images.images)
    if count > 1 and distinct < _LEAST_DIFFERENT * count:
        found.append(
            Finding(
                id="calibration-copies",
                title="Calibration images are copies of each other",
                level="warning",
                detail=f"{distinct} of {count} calibration images are different; ranges and integers were fitted to "
                "these alone, and accuracy suffers. Give images as the model will see them",
            )
        )
    largest = int(answers.bincount().max())
    if count >= _FEWEST and largest > _LARGEST_CLASS * count:
        found.append(
            Finding(
                id="calibration-classes",
                title="Calibration images are nearly all of one class",
                level="warning",
                detail=f"the model gives {largest} of {count} calibration images to one class, and ranges and integers "
                "were fitted to it; accuracy suffers, and more of a backdoor with that class is left. Give images of "
                "all classes",
            )
        )
    return found
