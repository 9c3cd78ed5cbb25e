from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from quantinel.data.npz import NpzArchive, read_image_arrays
from quantinel.data.sources import load_images
from quantinel.errors import InputError

IMAGES = np.arange(5 * 4 * 6 * 3, dtype=np.uint8).reshape(5, 4, 6, 3)


def write(path: Path, **arrays: object) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def header_only(shape: tuple[int, ...], dtype: str = "|u1") -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


@pytest.mark.parametrize("compressed", [False, True], ids=["stored", "deflated"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["uint8", "int32", ">i8", "uint64"])
def test_arrays_and_labels(tmp_path: Path, dtype: str, order: str, compressed: bool) -> None:
    labels = np.array([0, 1, 2, 1, 0], dtype=dtype)
    save = np.savez_compressed if compressed else np.savez
    save(tmp_path / "a.npz", images=np.asarray(IMAGES, order=order), labels=labels)  # type: ignore[arg-type]
    read = read_image_arrays(tmp_path / "a.npz", "test")
    assert np.array_equal(read.images.numpy(), IMAGES.transpose(0, 3, 1, 2))
    assert read.labels is not None
    assert read.labels.tolist() == [0, 1, 2, 1, 0]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": IMAGES / 255}, r"\(x \* 255\)\.round\(\)\.astype\('uint8'\)"),
        ({"images": IMAGES.astype(np.int64)}, r"astype\('uint8'\)"),
        ({"images": IMAGES > 3}, "images are bool"),
        ({"images": IMAGES.transpose(0, 3, 1, 2)}, r"\(N, C, H, W\): write images\.transpose\(0, 2, 3, 1\)"),
        ({"images": IMAGES[..., 0]}, r"images\[\.\.\., None\]"),
        ({"images": IMAGES[..., :2]}, "C = 1 or 3"),
        ({"images": IMAGES[0, 0]}, "C = 1 or 3"),
        ({"images": IMAGES[:0]}, "empty"),
        ({"images": IMAGES[:, :0]}, "empty"),
        ({"x_train": IMAGES, "y": np.zeros(5)}, "no array 'images', it holds x_train, y"),
        ({"images": IMAGES, "labels": np.zeros(5)}, r"labels\.astype\('int64'\)"),
        ({"images": IMAGES, "labels": np.zeros(5, bool)}, "labels are bool"),
        ({"images": IMAGES, "labels": np.zeros((5, 10), int)}, r"labels\.argmax\(axis=1\)"),
        ({"images": IMAGES, "labels": np.zeros((5, 1), int)}, r"labels\.ravel\(\)"),
        ({"images": IMAGES, "labels": np.array(3)}, r"labels have shape \(\)"),
        ({"images": IMAGES, "labels": np.zeros(4, int)}, "5 images but 4 labels"),
        ({"images": IMAGES, "labels": np.array([0, 1, 2, 3, -1])}, "from -1 to 3"),
        ({"images": IMAGES, "labels": np.full(5, 2**64 - 1, np.uint64)}, "class indices"),
        ({"images": np.array([None])}, "Python objects"),
        ({"images": IMAGES, "labels": np.array(list("abcde"), dtype=object)}, "Python objects"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_arrays_say_what_to_write_instead(tmp_path: Path, arrays: dict[str, object], message: str) -> None:
    path = write(tmp_path / "a.npz", **arrays)
    with pytest.raises(InputError, match=message) as caught:
        read_image_arrays(path, "test")
    assert "\n" not in str(caught.value)
    assert "a.npz" in str(caught.value)


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("must-not-exist"),)  # type: ignore[return-value]


def test_pickles_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("a.npz", "w") as archive:
        archive.writestr("images.npy", pickle.dumps(_Bomb()))
    write(Path("b.npz"), images=np.array([_Bomb()], dtype=object))
    for name in ("a.npz", "b.npz"):
        with pytest.raises(InputError):
            load_images(name)
    assert not Path("must-not-exist").exists()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
def test_a_declared_terabyte_is_not_allocated(tmp_path: Path, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", method) as archive:
        archive.writestr("images.npy", header_only((10**6, 1000, 1000, 3)) + bytes(100))
    with pytest.raises(InputError, match="declares 3000000000000 bytes and holds 100"):
        read_image_arrays(tmp_path / "a.npz", "test")


def patched_sizes(path: Path, size: int) -> None:
    """Let the directory of a zip lie about how large its one member is."""
    data = bytearray(path.read_bytes())
    directory = data.rindex(b"PK\x01\x02")
    data[directory + 24 : directory + 28] = size.to_bytes(4, "little")
    path.write_bytes(data)


def test_a_lying_directory_is_not_believed(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        header = header_only((1, 1000, 1_000_000, 3))
        archive.writestr("images.npy", header + bytes(100))
    patched_sizes(tmp_path / "a.npz", len(header) + 3 * 10**9)
    with pytest.raises(InputError, match="too small to hold"):
        read_image_arrays(tmp_path / "a.npz", "test")


def test_more_than_the_bound_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantinel.data.npz.MAX_BYTES", 200)
    with pytest.raises(InputError, match="the limit is 200"):
        read_image_arrays(write(tmp_path / "a.npz", images=IMAGES), "test")


@pytest.mark.parametrize(
    "member",
    [
        b"",
        b"\x93NUMPY",
        b"\x93NUMPY\x03\x00" + bytes(20),
        header_only((-1, 4, 4, 3)),
        header_only((0, 10**30, 1, 1)),
        b"\x93NUMPY\x01\x00\x10\x00{'descr': [[[[[[\n",
        b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535,
    ],
    ids=["empty", "magic", "version", "negative", "overflow", "syntax", "nested"],
)
def test_broken_headers(tmp_path: Path, member: bytes) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images.npy", member)
    with pytest.raises(InputError) as caught:
        read_image_arrays(tmp_path / "a.npz", "test")
    assert "\n" not in str(caught.value)


def test_unusual_compression_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("images.npy", header_only((1, 1, 1, 3)) + bytes(3))
    with pytest.raises(InputError, match="numpy does not write"):
        read_image_arrays(tmp_path / "a.npz", "test")


@pytest.mark.parametrize("keep", [0, 1, 60, 250, -30])
def test_truncated_files(tmp_path: Path, keep: int) -> None:
    path = write(tmp_path / "a.npz", images=IMAGES)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"not a readable \.npz"):
        read_image_arrays(path, "test")


def test_every_flipped_byte_is_an_error_or_harmless(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz", images=IMAGES[:1], labels=np.zeros(1, int))
    original, expected = path.read_bytes(), read_image_arrays(path, "test").sha256()
    for position in range(0, len(original), 7):
        damaged = bytearray(original)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        try:
            read = read_image_arrays(path, "test")
        except InputError:
            continue  # whatever else is raised fails the test
        assert read.labels is None or read.sha256() == expected


def test_names_and_headers_without_reading(tmp_path: Path) -> None:
    with NpzArchive(write(tmp_path / "a.npz", images=IMAGES, labels=np.zeros(5))) as archive:
        assert archive.names == ("images", "labels")
        header = archive.header("images")
    assert (header.shape, header.dtype, header.nbytes) == (IMAGES.shape, np.dtype("uint8"), IMAGES.nbytes)
