"""A safetensors file of any size, read in ranges: nothing is mapped or held but what was asked for.

The format is a length (8 bytes, little endian), a JSON header and the bytes of the tensors, row-major and little
endian. The header is untrusted: it is bounded, and every entry is checked against the file's size before it is
believed.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import torch
from torch import Tensor

from quantinel.errors import InputError
from quantinel.model.archive_text import shown

MAX_HEADER = 1 << 23
"""Bytes; a hundred thousand tensors need about as much."""
_MAX_DIMENSIONS = 16
_WIDTHS = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "I8": 1,
    "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types that `SafetensorsFile.read` converts."""


@dataclass(frozen=True)
class StoredTensor:
    """An entry of the header.

    Attributes:
        name: as the file has it.
        dtype: safetensors' word for it, e.g. ``F32``.
        shape: checked against the bytes.
        offset: of its first byte in the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def count(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)


class SafetensorsFile:
    """An open file; use it in a ``with`` statement.

    Attributes:
        tensors: in the order of their bytes.
    """

    def __init__(self, path: str | Path) -> None:
        """Open and check the header.

        Raises:
            InputError: missing, truncated, or not of this format.
        """
        self.path = Path(path)
        try:
            self._stream: BinaryIO = self.path.open("rb", buffering=0)
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror}); give a .safetensors file") from error
        try:
            self.tensors = self._read_header()
        except BaseException:
            self._stream.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    def read(self, tensor: StoredTensor, start: int, stop: int) -> Tensor:
        """Numbers [start, stop) of a float tensor in row-major order, as float32; the caller may change them.

        Raises:
            InputError: the file became shorter.
        """
        width = _WIDTHS[tensor.dtype]
        buffer = torch.empty((stop - start) * width, dtype=torch.uint8)
        self._fill(memoryview(buffer.numpy()), tensor.offset + start * width)  # type: ignore[arg-type]
        return buffer.view(FLOATS[tensor.dtype]).float()

    def _fill(self, view: memoryview, offset: int) -> None:
        done = 0
        try:
            self._stream.seek(offset)
            while done < len(view):
                got = self._stream.readinto(view[done:])  # type: ignore[attr-defined]
                if not got:
                    raise self._wrong("it ends early")
                done += got
        except OSError as error:
            raise InputError(f"{self.path} cannot be read ({error.strerror}); copy the file again") from error

    def _wrong(self, what: str) -> InputError:
        return InputError(f"{self.path} is not a valid safetensors file ({what}); download or save it again")

    def _read_header(self) -> tuple[StoredTensor, ...]:
        try:
            size = os.fstat(self._stream.fileno()).st_size
        except OSError as error:
            raise InputError(f"{self.path} cannot be read ({error.strerror}); give a .safetensors file") from error
        if size < 10:
            raise self._wrong("it is too short")
        prefix = bytearray(8)
        self._fill(memoryview(prefix), 0)
        length = int.from_bytes(prefix, "little")
        if length > min(MAX_HEADER, size - 8):
            raise self._wrong(f"its header would have {length} bytes")
        text = bytearray(length)
        self._fill(memoryview(text), 8)
        try:
            header = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:
            raise self._wrong("its header is not JSON with unique names") from error
        if not isinstance(header, dict):
            raise self._wrong("its header is not an object")
        found = [self._entry(name, entry, 8 + length, size) for name, entry in header.items() if name != "__metadata__"]
        found.sort(key=lambda tensor: tensor.offset)
        end = 0
        for tensor in found:
            if tensor.offset < end:
                raise self._wrong(f"{shown(tensor.name)} overlaps another tensor")
            end = tensor.offset + tensor.count * _WIDTHS[tensor.dtype]
        return tuple(found)

    def _entry(self, name: str, entry: Any, start: int, size: int) -> StoredTensor:
        fields = entry if isinstance(entry, dict) else {}
        dtype, shape, offsets = fields.get("dtype"), _sizes(fields.get("shape")), _sizes(fields.get("data_offsets"))
        if not isinstance(dtype, str) or dtype not in _WIDTHS:
            raise self._wrong(f"{shown(name)} has no known type")
        if shape is None or offsets is None or len(offsets) != 2 or len(shape) > _MAX_DIMENSIONS:
            raise self._wrong(f"{shown(name)} has no shape or no place")
        begin, end = offsets
        if not begin <= end <= size - start or math.prod(shape) * _WIDTHS[dtype] != end - begin:
            raise self._wrong(f"{shown(name)} does not fit its place in the file")
        return StoredTensor(name, dtype, shape, start + begin)


def _sizes(value: Any) -> tuple[int, ...] | None:
    """A list of sizes (bool is not one), or None."""
    valid = isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 48 for item in value)
    return tuple(value) if valid else None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found
