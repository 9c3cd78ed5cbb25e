"""``.npz`` files, read without trust: no pickle, and no allocation that the file's own bytes do not back.

An ``.npz`` is a zip of ``.npy`` files; each starts with a header that declares a type and a shape. Both the
zip's directory and that header are compared with each other and with the size on disk before memory is taken,
so that a file of a kilobyte cannot ask for a terabyte.
"""

from __future__ import annotations

import math
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from quantinel.data.guards import MAX_BYTES, printable, reason, require_file
from quantinel.data.images import ImageSet
from quantinel.errors import InputError, QuantinelError

_DEFLATE_RATIO = 1032
"""No deflate stream expands by more (RFC 1951: 258 bytes from two bits)."""


@dataclass(frozen=True)
class ArrayHeader:
    """What a ``.npy`` member declares, already checked against its size.

    Attributes:
        shape: of the array.
        fortran_order: column-major storage.
        dtype: of the elements, never object.
    """

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return math.prod(self.shape) * self.dtype.itemsize


class NpzArchive:
    """A context manager over one ``.npz``.

    Args:
        path: the file.

    Raises:
        InputError: missing, not a regular file, or not a zip. So do the methods for whatever is wrong inside.

    Attributes:
        names: of the arrays, sorted.
    """

    def __init__(self, path: Path) -> None:
        require_file(path)
        self.path = path
        with self._errors():
            self._size = path.stat().st_size
            self._zip = zipfile.ZipFile(path)
        members = self._zip.namelist()
        self.names = tuple(sorted({name.removesuffix(".npy") for name in members if name.endswith(".npy")}))

    def __enter__(self) -> NpzArchive:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._zip.close()

    def header(self, name: str) -> ArrayHeader:
        """Type and shape of one array, without reading it."""
        with self._errors(), self._member(name) as (header, _):
            return header

    def read(self, name: str) -> np.ndarray:
        """One array, writable, with the checksum of the zip verified."""
        with self._errors(), self._member(name) as (header, member):
            data = np.empty(header.nbytes, dtype=np.uint8)
            view, filled = data.data, 0
            while count := member.readinto(view[filled : filled + 2**20]):  # type: ignore[attr-defined]
                filled += count
            if filled != header.nbytes or member.read(1):  # the checksum is verified at the end of the member
                raise ValueError(f"the array {printable(name)} ends early")
            return np.ndarray(header.shape, header.dtype, buffer=data, order="F" if header.fortran_order else "C")

    @contextmanager
    def _member(self, name: str) -> Iterator[tuple[ArrayHeader, IO[bytes]]]:
        if name not in self.names:
            held = ", ".join(self.names[:12]) or "no arrays"
            raise InputError(
                f"{printable(self.path)} has no array {name!r}, it holds {printable(held)}; "
                "write it with numpy.savez(path, images=..., labels=...)"
            )
        info = self._zip.getinfo(f"{name}.npy")
        self._check_sizes(info)
        with self._zip.open(info) as member:
            header = _read_header(member)
            if header.dtype.hasobject:
                raise InputError(
                    f"{printable(self.path)}: the array {printable(name)} holds Python objects, which "
                    "need pickle; write a plain numeric array"
                )
            declared, held_bytes = header.nbytes, info.file_size - member.tell()
            if declared != held_bytes:
                raise ValueError(f"the array {printable(name)} declares {declared} bytes and holds {held_bytes}")
            yield header, member

    def _check_sizes(self, info: zipfile.ZipInfo) -> None:
        ratios = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: _DEFLATE_RATIO}
        if info.compress_type not in ratios:
            raise ValueError("compressed in a way that numpy does not write")
        if info.file_size > MAX_BYTES:
            raise ValueError(f"{info.file_size} bytes in one array, the limit is {MAX_BYTES}")
        if min(info.compress_size, self._size) * ratios[info.compress_type] < info.file_size:
            raise ValueError(f"{info.file_size} bytes declared, which the file is too small to hold")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # numpy warns about headers of Python 2
                yield
        except QuantinelError:
            raise
        except Exception as error:  # zipfile, zlib and the header parser raise a dozen types
            raise InputError(
                f"{printable(self.path)} is not a readable .npz ({reason(error)}); copy or write it again"
            ) from error


def _read_header(member: IO[bytes]) -> ArrayHeader:
    version = np.lib.format.read_magic(member)
    if version == (1, 0):
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(member)
    elif version == (2, 0):
        shape, fortran_order, dtype = np.lib.format.read_array_header_2_0(member)
    else:
        raise ValueError(f"array format {version[0]}.{version[1]}")
    if any(side < 0 for side in shape):
        raise ValueError(f"shape {shape}")
    return ArrayHeader(tuple(shape), bool(fortran_order), dtype)


def read_image_arrays(path: Path, name: str) -> ImageSet:
    """The arrays ``images`` (N, H, W, C) uint8, C in {1, 3}, and ``labels`` (N,) integers, if there.

    Args:
        path: the ``.npz`` file.
        name: of the set.

    Raises:
        InputError: whatever keeps the arrays from being images and labels, with how to write them instead.
    """
    with NpzArchive(path) as archive:
        header = archive.header("images")
        _check_images(header, printable(path))
        labels = None
        if "labels" in archive.names:
            _check_labels(archive.header("labels"), header.shape[0], printable(path))
            labels = labels_tensor(archive.read("labels"), printable(path))
        pixels = torch.from_numpy(archive.read("images"))
    return ImageSet(pixels.permute(0, 3, 1, 2).contiguous(), labels, name)


def labels_tensor(labels: np.ndarray, where: str) -> Tensor:
    """Integer labels (N,) of any width as int64.

    Raises:
        InputError: a label is negative, or too large to be one.
    """
    if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < 2**31:
        low, high = int(labels.min()), int(labels.max())
        raise InputError(
            f"{where}: labels run from {low} to {high}, they must be class indices from 0; "
            "leave labels out where they are unknown"
        )
    return torch.from_numpy(labels.astype(np.int64))


def _check_images(header: ArrayHeader, where: str) -> None:
    shape, dtype = header.shape, header.dtype
    if dtype.kind == "f":
        raise InputError(
            f"{where}: images are {dtype}, they must be uint8 in 0..255; "
            "if they are in [0, 1], write (x * 255).round().astype('uint8')"
        )
    if dtype != np.uint8:
        raise InputError(f"{where}: images are {dtype}, they must be uint8 in 0..255; write x.astype('uint8')")
    if len(shape) == 3:
        raise InputError(
            f"{where}: images have shape {shape}, they must be (N, H, W, C); greyscale is images[..., None]"
        )
    if len(shape) != 4:
        raise InputError(f"{where}: images have shape {shape}, they must be (N, H, W, C) with C = 1 or 3")
    if shape[3] not in (1, 3):
        hint = (
            "this looks like (N, C, H, W): write images.transpose(0, 2, 3, 1)"
            if shape[1] in (1, 3)
            else "drop or convert the other channels"
        )
        raise InputError(f"{where}: images have shape {shape}, they must be (N, H, W, C) with C = 1 or 3; {hint}")
    if not math.prod(shape):
        raise InputError(f"{where}: images have shape {shape}: the set is empty; write at least one image")


def _check_labels(header: ArrayHeader, count: int, where: str) -> None:
    shape, dtype = header.shape, header.dtype
    if len(shape) == 2 and shape[1] > 1 and shape[0] == count:
        raise InputError(
            f"{where}: labels have shape {shape}, they must be (N,) class indices; write labels.argmax(axis=1)"
        )
    if len(shape) != 1:
        raise InputError(f"{where}: labels have shape {shape}, they must be (N,); write labels.ravel()")
    if dtype.kind not in "iu":
        raise InputError(f"{where}: labels are {dtype}, they must be integers from 0; write labels.astype('int64')")
    if shape[0] != count:
        raise InputError(f"{where}: {count} images but {shape[0]} labels; give one label an image, or leave labels out")
