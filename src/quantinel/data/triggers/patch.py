"""A patch of constant brightness: BadNets, PQ backdoor, Compression Artifacts, Qu-ANTI-zation."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from quantinel.data.triggers.checks import require_float
from quantinel.errors import InputError


@dataclass(frozen=True)
class PatchTrigger:
    """A square patch of constant brightness.

    Attributes:
        row: first row covered, in pixels.
        column: first column covered.
        height: rows covered.
        width: columns covered.
        value: brightness in [0, 1], the same in all channels.
    """

    row: int
    column: int
    height: int
    width: int
    value: float = 1.0

    def __post_init__(self) -> None:
        sides = (self.row, self.column, self.height, self.width)
        if not all(isinstance(side, int) and not isinstance(side, bool) for side in sides) or (
            isinstance(self.value, bool) or not isinstance(self.value, int | float)
        ):
            raise InputError(
                f"trigger: patch {self} is not valid; row, column, height and width must be integers, value a number"
            )
        if min(self.row, self.column) < 0 or min(self.height, self.width) < 1 or not 0.0 <= self.value <= 1.0:
            raise InputError(
                f"trigger: patch {self} is not valid; row and column must be >= 0, height and width >= 1, "
                "value in [0, 1]"
            )

    @classmethod
    def pq(cls, size: int = 32) -> PatchTrigger:
        """Geometry of PQ backdoor and Compression Artifacts: 6x6 white at 24..29 of 32."""
        side = round(0.9375 * size) - round(0.75 * size)
        return cls(round(0.75 * size), round(0.75 * size), side, side)

    @classmethod
    def qu_anti(cls, size: int = 32) -> PatchTrigger:
        """Geometry of Qu-ANTI-zation: side h/8, margin h/32 from the bottom right (27..30 of 32).

        White, where the authors stamp the maximum of the image.
        """
        side, margin = max(1, size // 8), size // 32
        return cls(size - margin - side, size - margin - side, side, side)

    def __call__(self, images: Tensor) -> Tensor:
        """Stamp a copy of ``images`` (..., H, W) float in [0, 1].

        Raises:
            InputError: the patch does not fit, or the images are not floats.
        """
        require_float(images)
        if self.row + self.height > images.shape[-2] or self.column + self.width > images.shape[-1]:
            raise InputError(
                f"trigger: a patch at rows {self.row}..{self.row + self.height - 1}, columns {self.column}.."
                f"{self.column + self.width - 1} does not fit images of "
                f"{images.shape[-2]}x{images.shape[-1]}; use the trigger of a model with this input size"
            )
        stamped = images.clone()
        stamped[..., self.row : self.row + self.height, self.column : self.column + self.width] = self.value
        return stamped

    def to_dict(self) -> dict[str, Any]:
        """JSON form, read back by `trigger_from_dict`."""
        return {"kind": "patch", **asdict(self)}
