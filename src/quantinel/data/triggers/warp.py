"""A smooth elastic warp with a fixed field.

Nguyen & Tran, "WaNet: Imperceptible Warping-based Backdoor Attack", ICLR 2021, section 3.2.
"""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from quantinel.data.triggers.checks import require_float, require_integer, require_number
from quantinel.errors import InputError


@dataclass(frozen=True)
class WarpTrigger:
    """Every pixel moves by a smooth random field, the same for all images.

    Attributes:
        grid: the field is drawn at grid x grid control points and interpolated (the paper's k: 4).
        strength: mean displacement at the control points, in half pixels per axis (the paper's s: 0.5).
        seed: of the field.
    """

    grid: int = 4
    strength: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        require_integer(self, "grid", 2, 64)
        require_number(self, "strength", 0.0, 64.0)
        require_integer(self, "seed", 0, 2**63 - 1)
        if not self.strength:
            raise InputError("trigger: strength is 0, which changes nothing; give a number above 0")

    def __call__(self, images: Tensor) -> Tensor:
        """Warp ``images`` (N, C, H, W) or (C, H, W) float in [0, 1].

        Raises:
            InputError: images smaller than the grid of control points, or not floats.
        """
        require_float(images)
        height, width = int(images.shape[-2]), int(images.shape[-1])
        if min(height, width) < self.grid:
            raise InputError(
                f"trigger: a field of {self.grid}x{self.grid} control points does not fit images of {height}x{width}; "
                "give fewer"
            )
        batch = images if images.ndim == 4 else images.unsqueeze(0)
        field = _field(self.grid, self.strength, self.seed, height, width).to(images)
        warped = F.grid_sample(batch, field.expand(len(batch), -1, -1, -1), padding_mode="border", align_corners=True)
        return warped.clamp(0.0, 1.0).reshape(images.shape)

    def to_dict(self) -> dict[str, Any]:
        """JSON form, read back by `trigger_from_dict`."""
        return {"kind": "warp", **asdict(self)}


@functools.lru_cache(maxsize=8)
def _field(grid: int, strength: float, seed: int, height: int, width: int) -> Tensor:
    """Where every pixel is read, (1, H, W, 2) in [-1, 1], columns first."""
    control = 2.0 * torch.rand(1, 2, grid, grid, generator=torch.Generator().manual_seed(seed)) - 1.0
    control = control / control.abs().mean()
    offsets = F.interpolate(control, (height, width), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    size = torch.tensor([float(width), float(height)])
    return (torch.stack((columns, rows), -1)[None] + strength * offsets / size).clamp(-1.0, 1.0)
