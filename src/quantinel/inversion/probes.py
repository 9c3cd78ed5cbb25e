"""Triggers of known kinds, to be tried on a model whose trigger is not known.

A network that obeys one trigger often follows others of its kind a little: a white square of another size, where it
overlaps the trained one. The bank covers the kinds that backdoors of image classifiers are published with: opaque
patches in the corners and the middle (BadNets), waves (SIG), blended noise (Chen et al.) and smooth warps (WaNet). All
scale with the image; none copies a published size, place or seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from quantinel.data.triggers import BlendedTrigger, OverlayTrigger, PatchTrigger, SinusoidTrigger, WarpTrigger
from quantinel.errors import InputError

_SIDE, _MARGIN = 5 / 32, 1 / 32
_YELLOW, _RED = (1.0, 1.0, 0.0), (1.0, 0.0, 0.0)
_SEED = 1_000_003
_AMPLITUDE, _OPACITY = 0.12, 0.15
_FREQUENCIES = (2, 5, 9)
_NOISES, _WARPS = 4, 3
_WARP_STRENGTH = 1.5


@dataclass(frozen=True)
class Probe:
    """One trigger to try.

    Attributes:
        name: what it is, for reports.
        stamp: a copy of images (N, C, H, W) in [0, 1] with it.
    """

    name: str
    stamp: Callable[[Tensor], Tensor]

    def as_mask(self, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        """Mask m (1, H, W) and pattern p (C, H, W) of x' = (1 - m) x + m p, as far as the trigger has this form.

        Taken from what it makes of a black and of a white image: exact for patches and blended patterns; of a wave,
        where it saturates; of a warp, nothing (m = 0).

        Args:
            shape: of the images.
        """
        black, white = (self.stamp(torch.full((1, *shape), value))[0] for value in (0.0, 1.0))
        mask = (1 - (white - black)).clamp(0, 1)
        pattern = torch.where(mask > 0, black / mask.clamp_min(1e-6), 0.5).clamp(0, 1)
        return mask.mean(0, keepdim=True), pattern


def probe_bank(shape: tuple[int, int, int]) -> list[Probe]:
    """The probes for images of a shape (C, H, W), the same every time.

    Those that do not fit small images are left out.
    """
    candidates = [*_patches(shape), *_waves(shape), *_noises(), *_warps()]
    blank = torch.zeros(1, *shape)
    return [probe for probe in candidates if _fits(probe, blank)]


def _fits(probe: Probe, blank: Tensor) -> bool:
    try:
        probe.stamp(blank)
    except InputError:
        return False
    return True


def _patches(shape: tuple[int, int, int]) -> list[Probe]:
    channels, height, width = shape
    tall, wide = max(1, round(_SIDE * height)), max(1, round(_SIDE * width))
    below, right = round(_MARGIN * height), round(_MARGIN * width)
    rows, columns = {"top": below, "bottom": height - below - tall}, {"left": right, "right": width - right - wide}
    places = {f"{vertical} {side}": (row, column) for vertical, row in rows.items() for side, column in columns.items()}
    places["middle"] = ((height - tall) // 2, (width - wide) // 2)
    probes = []
    for place, (row, column) in places.items():
        for colour, value in (("white", 1.0), ("black", 0.0)):
            probes.append(Probe(f"{colour} patch, {place}", PatchTrigger(row, column, tall, wide, value)))
        fills = {
            "checkered": (torch.arange(tall)[:, None] + torch.arange(wide))
            .remainder(2)
            .float()
            .expand(channels, -1, -1)
        }
        if channels == 3:
            fills |= {
                name: torch.tensor(colour)[:, None, None].expand(-1, tall, wide)
                for name, colour in (("yellow", _YELLOW), ("red", _RED))
            }
        for name, fill in fills.items():
            pattern, opacity = torch.zeros(shape), torch.zeros(1, height, width)
            pattern[:, row : row + tall, column : column + wide] = fill
            opacity[:, row : row + tall, column : column + wide] = 1.0
            probes.append(Probe(f"{name} patch, {place}", OverlayTrigger(pattern, opacity, name)))
    return probes


def _waves(shape: tuple[int, int, int]) -> list[Probe]:
    waves = []
    for frequency in _FREQUENCIES:
        wave = SinusoidTrigger(_AMPLITUDE, frequency)
        waves.append(Probe(f"{frequency} waves across", wave))
        waves.append(Probe(f"{frequency} waves down", lambda images, wave=wave: wave(images.mT).mT))  # type: ignore[misc]
    return waves


def _noises() -> list[Probe]:
    return [Probe(f"blended noise {index}", BlendedTrigger(_OPACITY, _SEED + index)) for index in range(_NOISES)]


def _warps() -> list[Probe]:
    return [Probe(f"warp {index}", WarpTrigger(4, _WARP_STRENGTH, _SEED + index)) for index in range(_WARPS)]
