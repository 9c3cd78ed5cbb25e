"""Triggers as values: functions of an image batch (N, C, H, W) float32 in [0, 1]."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quantinel.data.guards import printable, reason, require_file
from quantinel.data.pictures import open_picture, picture_errors
from quantinel.errors import InputError

_MAX_JSON_BYTES = 65_536


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
        """Geometry of Qu-ANTI-zation: side h/8, margin h/32 from the bottom right (27..30 of 32)."""
        side, margin = max(1, size // 8), size // 32
        return cls(size - margin - side, size - margin - side, side, side)

    def __call__(self, images: Tensor) -> Tensor:
        """Stamp a copy of ``images`` (..., H, W) float in [0, 1].

        Raises:
            InputError: the patch does not fit, or the images are not floats.
        """
        _require_float(images)
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


class OverlayTrigger:
    """A picture with transparency, laid over the image: ``(1 - a) x + a p``.

    Args:
        pattern: (C, H, W) float32 in [0, 1].
        opacity: (1, H, W) float32 in [0, 1].
        source: where it came from, for reports.
    """

    def __init__(self, pattern: Tensor, opacity: Tensor, source: str) -> None:
        self.pattern, self.opacity, self.source = pattern, opacity, source

    def __call__(self, images: Tensor) -> Tensor:
        """Lay the picture over ``images`` (..., C, H, W) float in [0, 1].

        Raises:
            InputError: the picture does not have the size and channels of the images.
        """
        _require_float(images)
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
        return {"kind": "overlay", "source": self.source}


Trigger = PatchTrigger | OverlayTrigger


def _require_float(images: Tensor) -> None:
    # A value of 1.0 is white among floats and all but black among bytes.
    if not images.is_floating_point():
        raise InputError(f"trigger: the images are {images.dtype}; convert them to floats in [0, 1] first")


def trigger_from_dict(values: dict[str, Any]) -> PatchTrigger:
    """Read the JSON form of a trigger.

    Raises:
        InputError: unknown kind, missing or unknown fields.
    """
    if values.get("kind") != "patch":
        kind = printable(repr(values.get("kind")))[:80]
        raise InputError(f"trigger: kind {kind} is not known; only 'patch' can be written as JSON")
    given = {key: value for key, value in values.items() if key != "kind"}
    known = {field.name for field in fields(PatchTrigger)}
    unknown, missing = sorted(given.keys() - known), sorted(known - given.keys() - {"value"})
    if unknown or missing:
        problem = f"unknown: {', '.join(unknown)}" if unknown else f"missing: {', '.join(missing)}"
        raise InputError(f"trigger: a patch has row, column, height, width and value; {printable(problem)[:80]}")
    return PatchTrigger(**given)


def load_trigger(path: Path) -> Trigger:
    """Read a trigger: ``.json`` (a patch) or a picture whose alpha channel says where it lies (PNG, WebP).

    Raises:
        InputError: missing, unreadable or not a trigger.
    """
    shown = printable(path)
    require_file(path)
    if path.suffix.lower() == ".json":
        return trigger_from_dict(_read_json(path))
    with picture_errors(f"trigger: {shown}"):
        picture = open_picture(path, f"trigger: {shown}")
        pixels = torch.from_numpy(np.array(picture.convert("RGBA"))).permute(2, 0, 1).to(torch.float32) / 255.0
    opacity = pixels[3:].contiguous()
    if float(opacity.min()) == 1.0 or float(opacity.max()) == 0.0:
        raise InputError(
            f"trigger: {shown} is {'opaque' if float(opacity.max()) else 'transparent'} everywhere; "
            "give a PNG whose alpha channel says where the trigger lies"
        )
    return OverlayTrigger(pixels[:3].contiguous(), opacity, shown)


def _read_json(path: Path) -> dict[str, Any]:
    example = '{"kind": "patch", "row": 24, "column": 24, "height": 6, "width": 6, "value": 1.0}'
    try:
        with path.open("rb") as file:
            values = json.loads(file.read(_MAX_JSON_BYTES).decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # decoding errors are ValueErrors
        raise InputError(f"trigger: {printable(path)} is not JSON ({reason(error)}); write {example}") from error
    if not isinstance(values, dict):
        raise InputError(f"trigger: {printable(path)} must hold one JSON object, such as {example}")
    return values
