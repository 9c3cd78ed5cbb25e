"""Damaged and odd models through loading and every detector that needs no images: refused, or judged, but no crash."""

from __future__ import annotations

import contextlib
import io
import math
import random
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.detectors.grids import network
from tests.support import make_images
from torch import Tensor, nn

from quantinel.backends.artefact_comparison import compare_artefact
from quantinel.backends.onnx_qdq import PROFILES, to_onnx
from quantinel.data.sources import load_images
from quantinel.detectors import DETECTORS
from quantinel.detectors.subject import Subject
from quantinel.errors import QuantinelError
from quantinel.model.graph import FloatGraph, trace
from quantinel.model.loading import load_model
from quantinel.quantization.calibration import calibrate
from quantinel.quantization.quantized_model import quantize_nearest
from quantinel.quantization.scheme import parse_scheme

DATA_FREE = [detector for detector in DETECTORS.values() if detector.needs == "weights"]
SHAPE = (3, 8, 8)


@contextlib.contextmanager
def refused_in_one_line() -> Iterator[None]:
    try:
        yield
    except QuantinelError as error:
        if "\n" in str(error):
            raise


def judge(graph: FloatGraph, scheme: str = "int8") -> None:
    """Run every detector; scores must be numbers."""
    subject = Subject(graph, parse_scheme(scheme), None, 0)
    for detector in DATA_FREE:
        with refused_in_one_line():
            found = detector.run(subject, detector.config())
            assert math.isfinite(found.score), detector.name
            assert all(math.isfinite(value) for value in found.statistics.values()), detector.name
            assert found.p_value is None or 0.0 <= found.p_value <= 1.0, detector.name


def noise() -> Tensor:
    return torch.randn(1 << 16, generator=torch.Generator().manual_seed(0))


def filled(weight: Tensor, value: float | None, factor: float = 1.0) -> Tensor:
    flat = noise()[: weight.numel()] * factor if value is None else torch.full((weight.numel(),), value)
    return flat.reshape(weight.shape)


@pytest.mark.parametrize("scheme", ["int8", "int2", "int8-per-tensor", "int4-weight-mse", "int4-weight-percentile"])
@pytest.mark.parametrize(
    ("value", "factor"),
    [
        (math.nan, 1.0), (math.inf, 1.0), (0.0, 1.0), (1.0, 1.0), (3e38, 1.0), (1e-42, 1.0), (None, 1e-38),
        (None, 1e-43), (None, 1e37), (None, 0.0),
    ],
)  # fmt: skip
def test_odd_weights(value: float | None, factor: float, scheme: str) -> None:
    graph = network(norm=True)
    graph.weight(graph.layers[0]).copy_(filled(graph.weight(graph.layers[0]), value, factor))
    judge(graph, scheme)
    for layer in graph.layers:
        graph.weight(layer).copy_(filled(graph.weight(layer), value, factor))
    judge(graph, scheme)


@pytest.mark.parametrize("seed", range(10))
def test_odd_single_weights(seed: int) -> None:
    generator = random.Random(seed)
    graph = network(norm=True)
    for layer in graph.layers:
        flat = graph.weight(layer).view(-1)
        for _ in range(generator.randint(1, 5)):
            flat[generator.randrange(len(flat))] = generator.choice([0.0, 3e38, -3e38, 1e-40, 1e30, -1.0])
    judge(graph, generator.choice(["int8", "int4", "int2", "int8-per-tensor"]))


def test_tiny_layers() -> None:
    for module in (
        nn.Sequential(nn.Flatten(), nn.Linear(3, 2)),
        nn.Sequential(nn.Conv2d(3, 1, 1, bias=False), nn.Flatten(), nn.Linear(1, 2)),
        nn.Sequential(nn.Conv2d(3, 3, 1, groups=3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 2)),
    ):
        judge(trace(module.eval(), (3, 1, 1)))


def damaged(whole: bytes, generator: random.Random) -> bytes:
    data = bytearray(whole)
    for _ in range(generator.randint(1, 4)):
        data[generator.randrange(len(data))] = generator.randrange(256)
    return bytes(data[: generator.randrange(len(data))] if generator.random() < 0.2 else data)


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)).eval()


def test_damaged_exported_programs(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batch = ({0: torch.export.Dim.AUTO},)
        torch.export.save(torch.export.export(small(), (torch.rand(2, *SHAPE),), dynamic_shapes=batch), buffer)
    generator = random.Random(0)
    path = tmp_path / "model.pt2"
    for _ in range(30):
        path.write_bytes(damaged(buffer.getvalue(), generator))
        with refused_in_one_line():
            model = load_model(path)
            judge(trace(model.module, model.input_shape))


def test_damaged_onnx_files(tmp_path: Path) -> None:
    graph = trace(small(), SHAPE)
    model = quantize_nearest(graph, calibrate(graph, make_images(4, SHAPE, 3), parse_scheme("int8")))
    whole = to_onnx(model, PROFILES["onnxruntime-x86"]).SerializeToString()
    generator = random.Random(0)
    path = tmp_path / "model.onnx"
    for _ in range(200):
        path.write_bytes(damaged(whole, generator))
        with refused_in_one_line():
            found = compare_artefact(graph, path)
            assert found.layers
            assert len(found.layers) + len(found.not_assessed) >= 2


def test_damaged_image_archives(tmp_path: Path) -> None:
    import numpy as np

    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    np.savez_compressed(tmp_path / "a.npz", images=images, labels=np.arange(6))
    whole = (tmp_path / "a.npz").read_bytes()
    generator = random.Random(0)
    for _ in range(200):
        (tmp_path / "a.npz").write_bytes(damaged(whole, generator))
        with refused_in_one_line():
            assert len(load_images(tmp_path / "a.npz")) > 0
