from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from quantinel.data import strips
from quantinel.data.images import ImageSet
from quantinel.data.strips import read_strips, write_strips
from quantinel.errors import InputError, OutputError


def random_images(count: int, side: int = 8, classes: int = 10) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)
    return ImageSet(pixels, torch.arange(count) % classes, "test")


def webp(width: int, height: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "WEBP", lossless=True)
    return np.frombuffer(buffer.getvalue(), dtype=np.uint8)


@pytest.mark.parametrize(("count", "side"), [(1, 8), (501, 4), (3, 33)], ids=str)
def test_round_trip_is_exact(tmp_path: Path, count: int, side: int) -> None:
    images = random_images(count, side)
    write_strips(tmp_path / "a.npz", images)
    read = read_strips(tmp_path / "a.npz", "test")
    assert read.sha256() == images.sha256()
    assert list(tmp_path.iterdir()) == [tmp_path / "a.npz"]


def test_strips_taller_than_a_webp_are_divided(tmp_path: Path) -> None:
    images = ImageSet(torch.zeros(500, 3, 33, 33, dtype=torch.uint8), torch.arange(500), "test")
    write_strips(tmp_path / "a.npz", images)  # 16,500 rows; a WebP ends at 16,383
    assert read_strips(tmp_path / "a.npz", "test").sha256() == images.sha256()


def test_more_than_a_hundred_strips_keep_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strips, "IMAGES_PER_STRIP", 1)
    images = random_images(112, 2)
    write_strips(tmp_path / "a.npz", images)
    assert read_strips(tmp_path / "a.npz", "test").sha256() == images.sha256()


def test_labels_above_255_survive(tmp_path: Path) -> None:
    images = random_images(2, 8)
    images = ImageSet(images.images, torch.tensor([0, 999]), "test")
    write_strips(tmp_path / "a.npz", images)
    labels = read_strips(tmp_path / "a.npz", "test").labels
    assert labels is not None
    assert labels.tolist() == [0, 999]


def test_bytes_are_reproducible(tmp_path: Path) -> None:
    write_strips(tmp_path / "a.npz", random_images(5))
    write_strips(tmp_path / "b.npz", random_images(5))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_only_square_labelled_rgb_can_be_written(tmp_path: Path) -> None:
    for shape in [(2, 1, 8, 8), (2, 3, 8, 9), (0, 3, 8, 8)]:
        labels = torch.zeros(shape[0], dtype=torch.int64)
        with pytest.raises(InputError, match="square RGB"):
            write_strips(tmp_path / "a.npz", ImageSet(torch.zeros(shape, dtype=torch.uint8), labels, "test"))


def test_unwritable_target(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="could not be written"):
        write_strips(tmp_path / "missing" / "a.npz", random_images(1))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels": np.zeros(1, np.uint8)}, "no strip_NN"),
        ({"strip_00": webp(8, 8)}, "no array 'labels'"),
        ({"labels": np.zeros(1, np.uint8), "strip_00": webp(8, 12)}, "stack of squares"),
        ({"labels": np.zeros(1, np.uint8), "strip_00": webp(8, 8)[:20]}, "readable picture"),
        ({"labels": np.zeros(3, np.uint8), "strip_00": webp(8, 16)}, "2 images but 3 labels"),
        ({"labels": np.zeros(1, np.uint8), "strip_00": webp(8, 16)}, "does not fit"),
        (
            {"labels": np.zeros(3, np.uint8), "strip_00": webp(8, 16), "strip_01": webp(4, 4)},
            "strip_01 does not fit",
        ),
        ({"labels": np.zeros(1, np.float32), "strip_00": webp(8, 8)}, "not integers"),
        ({"labels": np.array([-1]), "strip_00": webp(8, 8)}, "class indices"),
    ],
    ids=str,
)
def test_broken_files_say_what_is_wrong(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=message) as caught:
        read_strips(tmp_path / "a.npz", "test")
    assert "\n" not in str(caught.value)
    assert "a.npz" in str(caught.value)


@pytest.mark.parametrize("size", [0, 100, -10], ids=["empty", "start", "end cut off"])
def test_truncated_file(tmp_path: Path, size: int) -> None:
    write_strips(tmp_path / "a.npz", random_images(3))
    data = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(data[:size])
    with pytest.raises(InputError, match=r"not a readable \.npz"):
        read_strips(tmp_path / "a.npz", "test")


def test_a_flipped_byte_is_noticed(tmp_path: Path) -> None:
    write_strips(tmp_path / "a.npz", random_images(3))
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        info = archive.getinfo("strip_00.npy")
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[info.header_offset + 400] ^= 1
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(InputError, match="CRC"):
        read_strips(tmp_path / "a.npz", "test")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_strips(tmp_path / "a.npz", "test")
