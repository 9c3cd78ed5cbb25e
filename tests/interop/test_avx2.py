"""On x86 without VNNI, signed weights saturate and give wrong sums; the profile `onnxruntime-avx2` does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.interop.emulation import QEMU, run_file
from tests.interop.networks import network
from tests.support import make_images
from torch import nn

from quantinel.backends.onnx_qdq import PROFILES, to_onnx
from quantinel.backends.verification import compare_outputs, simulated_logits
from quantinel.data.images import ImageSet
from quantinel.model.graph import trace
from quantinel.quantization.calibration import calibrate
from quantinel.quantization.quantized_model import QuantizedModel, quantize_nearest
from quantinel.quantization.scheme import QuantScheme

pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(QEMU is None, reason="qemu-x86_64 is not installed: apt-get install qemu-user"),
]


class _OneConvolution(nn.Module):
    """16 to 16 channels, 3x3, whose weights are all near the largest code."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(16, 16, 3, bias=False)
        generator = torch.Generator().manual_seed(0)
        self.convolution.weight.data = 0.7 + 0.3 * torch.rand(16, 16, 3, 3, generator=generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.convolution(x).mean((2, 3))


@pytest.fixture(scope="module")
def large_weights() -> tuple[QuantizedModel, ImageSet]:
    bright = make_images(8, (16, 8, 8))
    images = ImageSet(180 + bright.images // 4, bright.labels, "bright")
    graph = trace(_OneConvolution(), images.shape)
    return quantize_nearest(graph, calibrate(graph, images, QuantScheme())), images


def difference_steps(
    model: QuantizedModel, images: ImageSet, profile: str, folder: Path, option: str | None = None
) -> float:
    """Largest difference between the emulated and the native result, in output steps."""
    data = to_onnx(model, PROFILES[profile]).SerializeToString()
    native = run_file(data, images.images, folder, emulated=False)
    emulated = run_file(data, images.images, folder, emulated=True, option=option)
    return compare_outputs(emulated, native, model.output_step).max_steps


def test_large_weights_saturate_as_int8(large_weights: tuple[QuantizedModel, ImageSet], tmp_path: Path) -> None:
    assert difference_steps(*large_weights, "onnxruntime-x86", tmp_path) > 20


@pytest.mark.parametrize(
    ("profile", "option"), [("onnxruntime-avx2", None), ("onnxruntime-x86", "session.x64quantprecision")]
)
def test_large_weights_are_exact(
    large_weights: tuple[QuantizedModel, ImageSet], tmp_path: Path, profile: str, option: str | None
) -> None:
    assert difference_steps(*large_weights, profile, tmp_path, option) == 0.0


def test_the_bundled_victim(tmp_path: Path) -> None:
    """A trained network: int8 weights are wrong by many steps on AVX2, the same integers as uint8 are exact."""
    model, images = network("resnet20")
    some = images.take(torch.arange(32))
    assert difference_steps(model, some, "onnxruntime-x86", tmp_path) > 10
    assert difference_steps(model, some, "onnxruntime-avx2", tmp_path) == 0.0
    assert difference_steps(model, some, "onnxruntime-x86", tmp_path, "session.x64quantprecision") == 0.0
    data = to_onnx(model, PROFILES["onnxruntime-avx2"]).SerializeToString()
    simulated = simulated_logits(model.simulate(), some.images)
    outputs = compare_outputs(run_file(data, some.images, tmp_path, emulated=True), simulated, model.output_step)
    assert outputs.passed, outputs
