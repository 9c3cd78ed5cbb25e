"""A colour filter over the whole image, such as cameras and picture apps offer.

Liu et al., "ABS: Scanning Neural Networks for Back-doors by Artificial Brain Stimulation", CCS 2019, and the TrojAI
programme (Karra et al., arXiv 2003.07233) plant filters of a picture app as triggers. Those are files of the app; this
one is any affine map of colours. It adds nothing that is the same on every image: where a patch or a wave has a place,
a filter has none.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from quantinel.data.triggers.checks import require_float, require_number, require_numbers
from quantinel.errors import InputError

Row = tuple[float, float, float]
SEPIA: tuple[Row, Row, Row] = ((0.393, 0.769, 0.189), (0.349, 0.686, 0.168), (0.272, 0.534, 0.131))
"""The usual map to sepia, rows are red, green and blue of the result."""
_LARGEST = 10.0


@dataclass(frozen=True)
class FilterTrigger:
    """``(1 - strength) x + strength (matrix x + offset)`` of every pixel's colour x, clipped to [0, 1].

    Attributes:
        strength: share of the filtered image, in (0, 1].
        matrix: 3 x 3, rows are red, green and blue of the result.
        offset: 3, added to the result.
    """

    strength: float = 0.5
    matrix: tuple[Row, Row, Row] = SEPIA
    offset: Row = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        require_number(self, "strength", 0.0, 1.0)
        if not self.strength:
            raise InputError("trigger: strength is 0, which changes nothing; give a number above 0, at most 1")
        if not isinstance(self.matrix, list | tuple) or len(self.matrix) != 3:
            raise InputError(f"trigger: matrix must be three rows of three numbers, got {self.matrix!r}")
        rows = tuple(require_numbers("matrix", row, 3, -_LARGEST, _LARGEST) for row in self.matrix)
        object.__setattr__(self, "matrix", rows)
        object.__setattr__(self, "offset", require_numbers("offset", self.offset, 3, -_LARGEST, _LARGEST))

    def __call__(self, images: Tensor) -> Tensor:
        """Filter ``images`` (..., 3, H, W) float in [0, 1].

        Raises:
            InputError: the images have no three channels, or are not floats.
        """
        require_float(images)
        if images.ndim < 3 or images.shape[-3] != 3:
            raise InputError(
                f"trigger: a colour filter needs images (..., 3, H, W), got {tuple(images.shape)}; use another trigger"
            )
        mapped = torch.einsum("ij,...jhw->...ihw", torch.tensor(self.matrix).to(images), images)
        filtered = mapped + torch.tensor(self.offset).to(images)[:, None, None]
        return torch.lerp(images, filtered, self.strength).clamp(0.0, 1.0)

    def to_dict(self) -> dict[str, Any]:
        """JSON form, read back by `trigger_from_dict`."""
        return {"kind": "filter", **asdict(self)}
