"""A faint sinusoid over the whole image.

Barni, Kallas & Tondi, "A New Backdoor Attack in CNNs by Training Set Corruption Without Label Poisoning", ICIP 2019
(SIG).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from quantinel.data.triggers.checks import require_float, require_integer, require_number
from quantinel.errors import InputError


@dataclass(frozen=True)
class SinusoidTrigger:
    """``x + delta sin(2 pi j f / W)`` in column j = 1..W, the same in all rows and channels, clipped to [0, 1].

    Attributes:
        delta: amplitude, in (0, 1] (the paper: 20 of 255 in training).
        frequency: whole periods across the image (the paper: 6).
    """

    delta: float = 20 / 255
    frequency: int = 6

    def __post_init__(self) -> None:
        require_number(self, "delta", 0.0, 1.0)
        require_integer(self, "frequency", 1)
        if not self.delta:
            raise InputError("trigger: delta is 0, which changes nothing; give a number above 0, at most 1")

    def __call__(self, images: Tensor) -> Tensor:
        """Add the wave to ``images`` (..., H, W) float in [0, 1].

        Raises:
            InputError: fewer than three columns a period, or the images are not floats.
        """
        require_float(images)
        width = images.shape[-1]
        if width <= 2 * self.frequency:
            raise InputError(
                f"trigger: {self.frequency} periods do not fit {width} columns; lower the frequency to at most "
                f"{max(0, (width - 1) // 2)}"
            )
        angle = torch.arange(1, width + 1, dtype=torch.float64) * (2 * math.pi * self.frequency / width)
        wave = (self.delta * angle.sin()).to(images)
        return (images + wave).clamp(0.0, 1.0)

    def to_dict(self) -> dict[str, Any]:
        """JSON form, read back by `trigger_from_dict`."""
        return {"kind": "sinusoid", **asdict(self)}
