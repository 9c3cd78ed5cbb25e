from __future__ import annotations

import json
from pathlib import Path

import torch
from tests.support import random_integers
from torch import Tensor, nn

from quantinel.backends.artefact import pack_integers, read_integers, restore
from quantinel.data.images import ImageSet
from quantinel.defenses import Nearest
from quantinel.model.graph import FloatGraph, trace
from quantinel.quantization.calibration import calibrate
from quantinel.quantization.quantized_model import quantize_nearest
from quantinel.quantization.reconstruction import choose_codes
from quantinel.quantization.scheme import parse_scheme


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


def test_corrected_biases_that_stay_float_are_kept(odd_graph: FloatGraph, images: ImageSet, tmp_path: Path) -> None:
    ranges = calibrate(odd_graph, images, parse_scheme("int4-weight-only"))
    model, _ = choose_codes(odd_graph, ranges, Nearest(bias_correction=True))
    (tmp_path / "x.safetensors").write_bytes(pack_integers(model, "ort"))
    stored = read_integers(tmp_path / "x.safetensors")
    restored = restore(odd_graph, stored)
    x = images.as_float()
    assert torch.equal(restored.simulate()(x), model.simulate()(x))
    assert not torch.equal(quantize_nearest(odd_graph, ranges).simulate()(x), model.simulate()(x))


class _Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.head = nn.Linear(3, 3), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gate(x.mean((2, 3))) + self.gate(x.amax((2, 3))))


def test_a_layer_that_is_called_twice_keeps_its_float_bias(images: ImageSet, tmp_path: Path) -> None:
    graph = trace(_Twice(), images.shape)
    model = quantize_nearest(graph, calibrate(graph, images, parse_scheme("int8-dynamic")))
    (tmp_path / "x.safetensors").write_bytes(pack_integers(model, "ort"))
    biases = {name: layer.bias() for name, layer in read_integers(tmp_path / "x.safetensors").layers.items()}
    assert list(biases) == ["gate", "gate#2", "head"]
    assert all(bias is not None and len(bias) for bias in biases.values())
