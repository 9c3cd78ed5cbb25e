"""An image or noise blended into the whole picture.

Chen et al., "Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning", 2017 (arXiv 1712.05526).
"""

from __future__ import annotations

import base64
import binascii
import functools
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from quantinel.data.triggers.checks import require_float, require_integer, require_number
from quantinel.errors import InputError


@dataclass(frozen=True)
class BlendedTrigger:
    """``(1 - alpha) x + alpha p``.

    Attributes:
        alpha: share of the pattern, in (0, 1].
        seed: of the uniform noise that is the pattern of images of any size; unused with ``pattern``.
        pattern: a picture of its own instead: its C*H*W bytes in base64. Make it with `from_image`.
        shape: (C, H, W) of ``pattern``.
    """

    alpha: float = 0.2
    seed: int = 0
    pattern: str | None = None
    shape: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        require_number(self, "alpha", 0.0, 1.0)
        require_integer(self, "seed", 0, 2**63 - 1)
        if not self.alpha:
            raise InputError("trigger: alpha is 0, which changes nothing; give a number above 0, at most 1")
        if (self.pattern is None) != (self.shape is None):
            raise InputError("trigger: pattern and shape belong together; give both or neither")
        if self.shape is not None:
            object.__setattr__(self, "shape", self._checked_shape(self.shape))

    def _checked_shape(self, shape: object) -> tuple[int, int, int]:
        try:
            size = len(base64.b64decode(str(self.pattern), validate=True))
        except (binascii.Error, ValueError) as error:
            raise InputError("trigger: pattern is not base64; write it with BlendedTrigger.from_image") from error
        if not isinstance(shape, list | tuple) or len(shape) != 3 or not all(type(side) is int for side in shape):
            raise InputError(f"trigger: shape must be three integers C, H, W, got {shape!r}")
        channels, height, width = shape
        if min(shape) < 1 or channels * height * width != size:
            raise InputError(f"trigger: pattern holds {size} bytes, which is not shape {tuple(shape)}; write it again")
        return channels, height, width

    @classmethod
    def from_image(cls, image: Tensor, alpha: float = 0.2) -> BlendedTrigger:
        """Blend ``image`` (C, H, W) uint8.

        Raises:
            InputError: another type or shape.
        """
        if image.dtype != torch.uint8 or image.ndim != 3:
            raise InputError(f"trigger: the pattern is {image.dtype} of {tuple(image.shape)}; give uint8 (C, H, W)")
        channels, height, width = image.shape
        text = base64.b64encode(image.cpu().contiguous().numpy().tobytes()).decode("ascii")
        return cls(alpha, 0, text, (channels, height, width))

    def __call__(self, images: Tensor) -> Tensor:
        """Blend into ``images`` (..., C, H, W) float in [0, 1].

        Raises:
            InputError: the pattern has another size, or the images are not floats.
        """
        require_float(images)
        size = (int(images.shape[-3]), int(images.shape[-2]), int(images.shape[-1]))
        if self.shape is not None and self.shape != size:
            raise InputError(
                f"trigger: the pattern is {self.shape}, the images are {size}; use a pattern as large as the images"
            )
        pattern = _noise(self.seed, size) if self.pattern is None else _picture(self.pattern, size)
        return torch.lerp(images, pattern.to(images).expand_as(images), self.alpha)

    def to_dict(self) -> dict[str, Any]:
        """JSON form, read back by `trigger_from_dict`."""
        values = {name: value for name, value in asdict(self).items() if value is not None}
        if self.shape is not None:
            values["shape"] = list(self.shape)
        return {"kind": "blended", **values}


@functools.lru_cache(maxsize=8)
def _noise(seed: int, shape: tuple[int, int, int]) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@functools.lru_cache(maxsize=8)
def _picture(pattern: str, shape: tuple[int, int, int]) -> Tensor:
    data = bytearray(base64.b64decode(pattern))
    return torch.frombuffer(data, dtype=torch.uint8).reshape(shape).float() / 255.0
