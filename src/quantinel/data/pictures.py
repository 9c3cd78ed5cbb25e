"""Picture files to pixels. Nothing that a file says about itself is trusted before it is checked.

Orientation (EXIF) is applied, transparency is laid on black, every colour mode becomes RGB, or greyscale for
models with one channel (ITU-R 601 luma). Animations give their first frame.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from quantinel.data.guards import reason, require_bytes, require_file
from quantinel.data.request import Request
from quantinel.errors import InputError, QuantinelError

# A closed list: Pillow would otherwise also start other programs (Ghostscript for EPS).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "GIF", "TIFF")
SUFFIXES = frozenset(
    {
        ".jpg",
        ".jpeg",
        ".jfif",
        ".png",
        ".webp",
        ".bmp",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".gif",
        ".tif",
        ".tiff",
    }
)

MAX_PIXELS = 89_478_485
"""Pillow's own warning level, here an error."""


@contextmanager
def picture_errors(where: str) -> Iterator[None]:
    """Turn whatever a decoder raises on bad bytes into one `InputError` that names ``where``."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except QuantinelError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(_too_large(where)) from error
    except Exception as error:
        raise InputError(f"{where} is not a readable picture ({reason(error)}); replace or remove it") from error


def open_picture(source: Path | bytes, where: str) -> Image.Image:
    """Open, check the declared size, decode and turn upright. Call inside `picture_errors`.

    Raises:
        InputError: not a regular file, or more than `MAX_PIXELS` pixels.
    """
    if isinstance(source, Path):
        require_file(source)
    with Image.open(source if isinstance(source, Path) else io.BytesIO(source), formats=FORMATS) as picture:
        if picture.width * picture.height > MAX_PIXELS:  # the program around us may have lifted Pillow's limit
            raise InputError(_too_large(where))
        picture.load()
        return ImageOps.exif_transpose(picture)


def decode(source: Path | bytes | Image.Image, where: str, input_shape: tuple[int, int, int] | None) -> np.ndarray:
    """One picture as uint8 (C, H, W).

    With an ``input_shape`` the shorter side is resized to fit (Lanczos, antialiased) and the centre is cut
    out; a picture that has the size already keeps its pixels. Without one: (3, H, W) of the picture.

    Args:
        source: a file, the bytes of one, or a decoded picture.
        where: what to call it in messages.
        input_shape: (C, H, W) of the model, C in {1, 3}, or None.

    Raises:
        InputError: unreadable, truncated, too large, or of a colour mode without a defined brightness.
    """
    with picture_errors(where):
        picture = source if isinstance(source, Image.Image) else open_picture(source, where)
        picture = _to_rgb(picture)
        if input_shape is not None:
            channels, height, width = input_shape
            if picture.size != (width, height):
                picture = ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)
            if channels == 1:
                return np.asarray(picture.convert("L"))[None]
        return np.asarray(picture).transpose(2, 0, 1)


def decode_all(
    sources: Iterable[tuple[str, Path | bytes | Image.Image]],
    total: int,
    request: Request,
) -> Tensor:
    """Decode ``total`` pictures, one at a time, into uint8 (total, C, H, W).

    Args:
        sources: (what to call it, picture).
        total: how many there are.
        request: without an ``input_shape`` all pictures must have one size.

    Raises:
        InputError: an unreadable picture, unequal sizes without an ``input_shape``, or too much memory.
    """
    images: np.ndarray | None = None
    done = 0
    for where, source in sources:
        pixels = decode(source, where, request.input_shape)
        if images is None:
            require_bytes(total * pixels.nbytes, request.name)
            images = _allocate((total, *pixels.shape), request.name)
        if pixels.shape != images.shape[1:]:
            raise InputError(
                f"{where} is {_size(pixels.shape)} pixels, the pictures before it {_size(images.shape[1:])}; "
                "give a model or an input shape to resize to, or pictures of one size"
            )
        images[done] = pixels
        done += 1
        if request.progress is not None:
            request.progress(done, total)
    if images is None or done != total:
        raise InputError(
            f"{request.name}: {done} pictures were found where {total} were announced; copy the data again"
        )
    return torch.from_numpy(images)


def luma(images: Tensor) -> Tensor:
    """RGB (N, 3, H, W) uint8 to greyscale (N, 1, H, W), with the integers that Pillow uses for mode L."""
    grey = torch.empty((len(images), 1, *images.shape[2:]), dtype=torch.uint8)
    for start in range(0, len(images), 1024):  # int32 pixels are four times as large: a slice at a time
        red, green, blue = images[start : start + 1024].to(torch.int32).unbind(1)
        grey[start : start + 1024, 0] = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16
    return grey


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16"):  # Pillow would clip 16 bits at 255 instead of scaling them
        grey = np.asarray(picture, dtype=np.uint32)
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")
    if picture.mode in ("I", "F"):
        raise ValueError("its pixels are numbers of unknown range, not 8 or 16 bits a channel")
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba).convert("RGB")
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _allocate(shape: tuple[int, ...], name: str) -> np.ndarray:
    try:
        return np.empty(shape, dtype=np.uint8)
    except MemoryError as error:
        raise InputError(f"{name}: not enough memory for pixels of shape {shape}; take fewer images") from error


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[-1]}x{shape[-2]}"


def _too_large(where: str) -> str:
    return f"{where} has more than {MAX_PIXELS // 1_000_000} million pixels; make the picture smaller"
