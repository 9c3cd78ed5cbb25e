from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from quantinel.data.pictures import SUFFIXES, decode, luma
from quantinel.errors import InputError


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def gradient(width: int, height: int) -> Image.Image:
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([rows * 255 // max(1, height - 1), columns * 255 // max(1, width - 1), rows * 0], axis=2)
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "LA", "RGBA"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    picture = Image.new("RGB", (4, 3), (255, 255, 255)).convert(mode)
    kind = {"CMYK": "TIFF", "YCbCr": "TIFF"}.get(mode, "PNG")
    pixels = decode(encoded(picture, kind), "x", None)
    assert pixels.shape == (3, 3, 4)
    assert (pixels >= 254).all()


def test_transparency_is_laid_on_black() -> None:
    picture = Image.new("RGBA", (2, 1), (200, 100, 50, 255))
    picture.putpixel((1, 0), (200, 100, 50, 0))
    assert decode(encoded(picture), "x", None)[:, 0].T.tolist() == [[200, 100, 50], [0, 0, 0]]


def test_a_transparent_palette_entry_is_black() -> None:
    picture = Image.new("P", (2, 1), 0)
    picture.putpalette([250, 250, 250, 10, 20, 30])
    picture.putpixel((1, 0), 1)
    pixels = decode(encoded(picture, transparency=0), "x", None)
    assert pixels[:, 0].T.tolist() == [[0, 0, 0], [10, 20, 30]]


def test_sixteen_bits_are_scaled() -> None:
    grey = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    assert decode(encoded(Image.fromarray(grey)), "x", None)[0, 0].tolist() == [0, 1, 128, 255]


def test_floats_of_unknown_range_are_refused() -> None:
    with pytest.raises(InputError, match="unknown range"):
        decode(encoded(Image.new("F", (2, 2)), "TIFF"), "x", None)


def test_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise
    pixels = decode(encoded(gradient(8, 4), "PNG", exif=exif), "x", None)
    assert np.array_equal(pixels.transpose(1, 2, 0), np.rot90(np.asarray(gradient(8, 4)), -1))


def test_the_right_size_keeps_its_pixels() -> None:
    assert np.array_equal(decode(encoded(gradient(8, 4)), "x", (3, 4, 8)), decode(encoded(gradient(8, 4)), "x", None))


@pytest.mark.parametrize("size", [(40, 20), (20, 40), (7, 9)], ids=str)
def test_resizing_cuts_out_the_centre(size: tuple[int, int]) -> None:
    pixels = decode(encoded(gradient(*size)), "x", (3, 10, 10)).astype(int)
    assert pixels.shape == (3, 10, 10)
    # The longer side loses both ends, the shorter one none: the gradients show it.
    longer, shorter = (1, 0) if size[0] > size[1] else (0, 1)
    assert pixels[longer].min() > pixels[shorter].min()
    assert pixels[longer].max() < pixels[shorter].max()
    assert abs(pixels[longer].mean() - 127.5) < 2


def test_one_channel_models_get_luma() -> None:
    picture = gradient(9, 5)
    grey = decode(encoded(picture), "x", (1, 5, 9))
    assert np.array_equal(grey[0], np.asarray(picture.convert("L")))


def test_luma_equals_pillow() -> None:
    pixels = torch.randint(0, 256, (1025, 3, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    sheet = Image.fromarray(pixels.permute(0, 2, 3, 1).reshape(-1, 4, 3).numpy())
    expected = np.asarray(sheet.convert("L")).reshape(1025, 1, 4, 4)
    assert np.array_equal(luma(pixels).numpy(), expected)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.6])
def test_truncated_pictures_are_named(kind: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    with pytest.raises(InputError, match=r"cat\.jpg") as caught:
        decode(data[: int(len(data) * share)], "cat.jpg", (3, 8, 8))
    assert "\n" not in str(caught.value)


def png_header(width: int, height: int) -> bytes:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in (chunk, data)
    )


@pytest.mark.parametrize("limit", [Image.MAX_IMAGE_PIXELS, None], ids=["default", "lifted"])
@pytest.mark.parametrize("side", [9_500, 14_000, 2**31 - 1], ids=str)
def test_decompression_bombs_are_errors(monkeypatch: pytest.MonkeyPatch, side: int, limit: int | None) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(InputError, match="more than 89 million pixels"):
        decode(png_header(side, side), "bomb.png", (3, 8, 8))


def test_programs_are_never_started() -> None:
    with pytest.raises(InputError, match="cannot identify"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n", "x.eps", None)


def test_a_decoder_that_raises_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> Image.Image:
        raise SyntaxError("two\nlines")

    monkeypatch.setattr(Image, "open", broken)
    with pytest.raises(InputError, match=r"x is not a readable picture \(two lines\)"):
        decode(b"", "x", None)


def test_every_suffix_names_a_format_that_is_read(tmp_path: Path) -> None:
    for suffix in sorted(SUFFIXES - {".pgm", ".pbm", ".jfif"}):
        gradient(4, 4).save(tmp_path / f"a{suffix}")
        assert decode(tmp_path / f"a{suffix}", "x", None).shape == (3, 4, 4)
