"""A picture with transparency, from a file of the user's."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from quantinel.data.triggers.checks import require_float
from quantinel.errors import InputError


class OverlayTrigger:
    """A picture with transparency, laid over the image: ``(1 - a) x + a p``.

    Args:
        pattern: (C, H, W) float32 in [0, 1].
        opacity: (1, H, W) float32 in [0, 1].
        source: where it came from, for reports.
    """

    kind: ClassVar[str] = "overlay"

    def __init__(self, pattern: Tensor, opacity: Tensor, source: str) -> None:
        self.pattern, self.opacity, self.source = pattern, opacity, source

    def __call__(self, images: Tensor) -> Tensor:
        """Lay the picture over ``images`` (..., C, H, W) float in [0, 1].

        Raises:
            InputError: the picture does not have the size and channels of the images.
        """
        require_float(images)
        if images.shape[-3:] != self.pattern.shape:
            raise InputError(
                f"trigger: {self.source} is (C, H, W) = {tuple(self.pattern.shape)}, the images are "
                f"{tuple(images.shape[-3:])}; make the picture as large as the images "
                "(for greyscale models give a patch as JSON)"
            )
        pattern, opacity = self.pattern.to(images), self.opacity.to(images)
        return torch.lerp(images, pattern.expand_as(images), opacity.expand_as(images))

    def to_dict(self) -> dict[str, Any]:
        """JSON form (a description only; the picture stays in its file)."""
        return {"kind": self.kind, "source": self.source}
