from __future__ import annotations

import json
from pathlib import Path

import torch
from tests.support import random_integers

from quantinel.backends.artefact import pack_integers, read_integers
from quantinel.data.images import ImageSet
from quantinel.model.graph import FloatGraph


def test_equal_integers_give_equal_bytes(odd_graph: FloatGraph, images: ImageSet, tmp_path: Path) -> None:
    """The safetensors library writes metadata in another order at every call."""
    model = random_integers(odd_graph, images, "int8")
    files = {pack_integers(model, "ort") for _ in range(8)}
    assert len(files) == 1
    (data,) = files
    length = int.from_bytes(data[:8], "little")
    names = list(json.loads(data[8 : 8 + length])["__metadata__"])
    assert names == sorted(names)
    assert length % 8 == 0
    (tmp_path / "x.safetensors").write_bytes(data)
    stored = read_integers(tmp_path / "x.safetensors")
    for name, layer in model.layers.items():
        torch.testing.assert_close(stored.layers[name].codes, layer.codes, rtol=0, atol=0)
        torch.testing.assert_close(stored.layers[name].scale, layer.scale, rtol=0, atol=0)
