"""A set of images as one tensor: nothing hidden, nothing lazy."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quantinel.errors import InputError, UsageError


@dataclass(frozen=True)
class ImageSet:
    """Images of one size, with labels where they are known.

    Attributes:
        images: (N, C, H, W) uint8.
        labels: (N,) int64, from 0, or None.
        name: how the user named the source.
        class_names: names by label, or None.

    Raises:
        InputError: a tensor of another type or shape, or a label outside of the classes.
    """

    images: Tensor
    labels: Tensor | None
    name: str
    class_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != torch.uint8:
            raise InputError(
                f"{self.name}: images must be uint8 of shape (N, C, H, W), got {self.images.dtype} "
                f"{tuple(self.images.shape)}; convert them to 0..255"
            )
        if self.labels is not None and self.labels.shape != (len(self.images),):
            raise InputError(
                f"{self.name}: {len(self.images)} images but labels of shape {tuple(self.labels.shape)}; "
                "give one label an image, or none at all"
            )
        if self.labels is not None:
            self._check_labels(self.labels)

    def _check_labels(self, labels: Tensor) -> None:
        if labels.dtype != torch.int64:
            raise InputError(f"{self.name}: labels are {labels.dtype}; convert them to int64 class indices")
        if not labels.numel():
            return
        low, high = int(labels.min()), int(labels.max())
        if low < 0:
            raise InputError(f"{self.name}: the label {low} is negative; leave labels out where they are unknown")
        if self.class_names is not None and high >= len(self.class_names):
            raise InputError(
                f"{self.name}: the label {high} has no name, there are {len(self.class_names)} class names; "
                "copy the data again"
            )

    def __len__(self) -> int:
        return int(self.images.shape[0])

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        channels, height, width = self.images.shape[1:]
        return int(channels), int(height), int(width)

    def take(self, indices: Tensor) -> ImageSet:
        """The images at ``indices`` (M,), in that order."""
        labels = None if self.labels is None else self.labels[indices]
        return replace(self, images=self.images[indices], labels=labels)

    def split(self, first: int, generator: torch.Generator) -> tuple[ImageSet, ImageSet]:
        """A random ``first`` images, and the rest; both keep the original order.

        Raises:
            UsageError: the set does not hold so many.
        """
        if not 0 <= first <= len(self):
            raise UsageError(f"{self.name}: {first} of {len(self)} images were asked for; ask for fewer")
        order = torch.randperm(len(self), generator=generator)
        return self.take(order[:first].sort().values), self.take(order[first:].sort().values)

    def batches(self, size: int = 256) -> Iterator[Tensor]:
        """Consecutive batches as float32 in [0, 1], (<= size, C, H, W).

        Raises:
            UsageError: ``size`` is below 1.
        """
        if size < 1:
            raise UsageError(f"a batch size of {size} is not possible; give at least 1")
        for start in range(0, len(self), size):
            yield as_float(self.images[start : start + size])

    def as_float(self) -> Tensor:
        """All images as float32 in [0, 1]."""
        return as_float(self.images)

    def sha256(self) -> str:
        """Hash of shape, pixels and labels."""
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        digest.update(self.images.cpu().contiguous().numpy().tobytes())
        if self.labels is not None:
            digest.update(self.labels.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def as_float(images: Tensor) -> Tensor:
    """uint8 0..255 to float32 in [0, 1], as a new tensor."""
    return images.to(torch.float32, copy=True).div_(255.0)
