from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from quantinel.errors import InputError
from quantinel.model.safetensors_file import MAX_HEADER, SafetensorsFile

TENSORS = {
    "a.weight": torch.arange(24, dtype=torch.float32).reshape(2, 3, 4),
    "b.weight": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
    "c": torch.tensor(3, dtype=torch.int64),
    "d": torch.zeros(0, 5),
}


def write(path: Path, header: Any, body: bytes = bytes(100)) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return path


def test_ranges_of_tensors(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(save(TENSORS, {"format": "pt"}))
    with SafetensorsFile(path) as file:
        by_name = {tensor.name: tensor for tensor in file.tensors}
        assert by_name.keys() == TENSORS.keys()
        assert [tensor.offset for tensor in file.tensors] == sorted(tensor.offset for tensor in file.tensors)
        for name in ("a.weight", "b.weight"):
            assert by_name[name].shape == tuple(TENSORS[name].shape)
            assert torch.equal(file.read(by_name[name], 2, 5), TENSORS[name].float().flatten()[2:5])


def entry(dtype: Any = "F32", shape: Any = (2, 3), offsets: Any = (0, 24)) -> dict[str, Any]:
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


@pytest.mark.parametrize(
    "header",
    [
        b"", b"{", b"[]", b"7", b"null", b'"a"', b"\xff\xfe", b"[" * 5000, b'{"a": 1, "a": 2}', {"a": None}, {"a": []},
        {"a": {}}, entry("F33"), entry(None), entry([]), entry(shape=None), entry(shape=[2, "3"]),
        entry(shape=[-2, -3]), entry(shape=[True, 6]), entry(shape=[1 << 40, 1 << 40]),
        entry(shape=[2, 3.0]), entry(shape=[1] * 17 + [6]),
        entry(offsets=(24, 0)), entry(offsets=(0, 25)), entry(offsets=(90, 114)), entry(offsets=(0, 24, 3)),
        entry(offsets=(-4, 20)), entry(offsets=None), entry() | {"b": entry(offsets=(4, 28))["a"]},
    ],
    ids=lambda header: repr(header)[:40],
)  # fmt: skip
def test_impossible_headers(tmp_path: Path, header: Any) -> None:
    with pytest.raises(InputError, match="not a valid safetensors file") as caught:
        SafetensorsFile(write(tmp_path / "a.safetensors", header))
    assert "\n" not in str(caught.value)


def test_lengths_are_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for data in (b"", b"1234567", (1 << 62).to_bytes(8, "little") + b"{}", (MAX_HEADER + 1).to_bytes(8, "little")):
        path.write_bytes(data)
        with pytest.raises(InputError):
            SafetensorsFile(path)
    with pytest.raises(InputError, match="cannot be read"):
        SafetensorsFile(tmp_path / "missing")
    with pytest.raises(InputError, match="cannot be read"):
        SafetensorsFile(tmp_path)


def test_a_file_that_shrinks(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(save(TENSORS))
    with SafetensorsFile(path) as file:
        path.write_bytes(b"")
        with pytest.raises(InputError, match="ends early"):
            file.read(file.tensors[0], 0, 1)
