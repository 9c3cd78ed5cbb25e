"""A network that draws a trigger for every image: U-Net noise, smoothed, added, blurred.

Huynh, Tran, Doan & Pham, "Data Poisoning Quantization Backdoor Attack", ECCV 2024, sections 3.3 and 3.4:
``B(x) = (x + eta T(b(x))) * k`` with a U-Net ``b`` of range [-1, 1] (Ronneberger, Fischer & Brox, MICCAI 2015), ``T``
the low frequencies of its cosine transform, and ``k`` a Gaussian kernel.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantinel.data.triggers.checks import require_integer, require_number
from quantinel.data.triggers.low_pass import gaussian_blur, low_pass
from quantinel.errors import InputError

_GROUPS = 4


@dataclass(frozen=True)
class GeneratorOptions:
    """Everything about a generated trigger but its weights. The paper gives the magnitude only.

    Attributes:
        channels: of the images.
        width: channels of the U-Net's first level, doubled at every level below; a multiple of 4.
        depth: levels below the first; images of at least ``2^depth`` pixels.
        magnitude: eta, the largest change of a channel before the blur, of images in [0, 1].
        ratio: share of the frequencies that the low-pass keeps along each axis, in (0, 1]; 1 for no low-pass.
        blur_size: odd width of the Gaussian kernel; 1 for no blur.
        blur_sigma: its standard deviation in pixels.
        bounded: scale the smoothed noise of an image down where the low-pass made it exceed the magnitude (a truncated
            cosine series overshoots). The paper bounds the noise before the low-pass, and states the bound for both.
    """

    channels: int = 3
    width: int = 32
    depth: int = 3
    magnitude: float = 10 / 255
    ratio: float = 0.5
    blur_size: int = 3
    blur_sigma: float = 0.5
    bounded: bool = True

    def __post_init__(self) -> None:
        require_integer(self, "channels", 1, 4)
        require_integer(self, "width", _GROUPS, 256)
        require_integer(self, "depth", 0, 5)
        require_number(self, "magnitude", 0.0, 1.0)
        require_number(self, "ratio", 0.0, 1.0)
        require_integer(self, "blur_size", 1, 31)
        require_number(self, "blur_sigma", 0.01, 100.0)
        if self.width % _GROUPS:
            raise InputError(f"trigger: width is {self.width}; give a multiple of {_GROUPS}")
        if not self.magnitude or not self.ratio:
            raise InputError("trigger: a magnitude or ratio of 0 changes nothing; give a number above 0, at most 1")
        if self.blur_size % 2 == 0:
            raise InputError(f"trigger: blur_size is {self.blur_size}; give an odd number")
        if not isinstance(self.bounded, bool):
            raise InputError(f"trigger: bounded is {self.bounded!r}; give true or false")


class TriggerGenerator(nn.Module):
    """``B``: images (N, C, H, W) in [0, 1] -> triggered images, differentiable, not clipped.

    Args:
        options: see `GeneratorOptions`.
    """

    def __init__(self, options: GeneratorOptions) -> None:
        super().__init__()
        self.options = options
        self.network = UNet(options.channels, options.width, options.depth)

    def noise(self, images: Tensor) -> Tensor:
        """``eta T(b(x))``, (N, C, H, W)."""
        smooth = low_pass(self.network(images), self.options.ratio)
        if self.options.bounded:
            smooth = smooth / smooth.detach().abs().amax((1, 2, 3), keepdim=True).clamp_min(1.0)
        return self.options.magnitude * smooth

    def apply_noise(self, images: Tensor, noise: Tensor) -> Tensor:
        """``(x + noise) * k``."""
        return gaussian_blur(images + noise, self.options.blur_size, self.options.blur_sigma)

    def forward(self, images: Tensor) -> Tensor:
        return self.apply_noise(images, self.noise(images))


class UNet(nn.Module):
    """Image -> noise in [-1, 1] of the same size: two convolutions a level, with skips between equal levels.

    Group normalisation, so that the noise of an image does not depend on the other images of its batch; tanh at the
    end for the range.

    Args:
        channels: of the images.
        width: of the first level, doubled at every level below.
        depth: levels below the first.
    """

    def __init__(self, channels: int, width: int, depth: int) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList(_two(a, b) for a, b in zip([channels, *widths], widths, strict=False))
        self.up = nn.ModuleList(
            _two(below + here, here) for below, here in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.last = nn.Conv2d(width, channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        x, skips = images * 2.0 - 1.0, []
        for level, block in enumerate(self.down):
            x = block(F.avg_pool2d(x, 2) if level else x)
            skips.append(x)
        skips.pop()
        for block in self.up:
            skip = skips.pop()
            x = block(torch.cat([F.interpolate(x, skip.shape[-2:]), skip], 1))
        return torch.tanh(self.last(x))


def _two(channels_in: int, channels_out: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (channels_in, channels_out):
        layers += [
            nn.Conv2d(channels, channels_out, 3, padding=1),
            nn.GroupNorm(_GROUPS, channels_out),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)
