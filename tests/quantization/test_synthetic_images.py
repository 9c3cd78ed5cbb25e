"""Calibration images without data: noise, seeds, and statistics of BatchNorm."""

from __future__ import annotations

import pytest
import torch
from tests.support import SHAPE, OddNet, make_images, randomise
from torch import nn

from quantinel.data.images import as_float
from quantinel.errors import UsageError
from quantinel.model.graph import FloatGraph, trace
from quantinel.quantization.synthetic_images import pink_noise, statistics_distance, synthetic_images


@pytest.fixture(scope="module")
def graph() -> FloatGraph:
    """A network whose BatchNorms remember pictures that it has seen."""
    network = randomise(OddNet()).train()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    network(make_images(64).as_float())
    return trace(network.eval(), SHAPE)


def test_the_spectrum_falls_with_frequency() -> None:
    noise = pink_noise(64, (3, 32, 32), torch.Generator().manual_seed(0))
    assert noise.shape == (64, 3, 32, 32)
    assert 0.0 <= float(noise.min()) < float(noise.max()) <= 1.0
    amplitude = torch.fft.rfft2(noise - noise.mean(dim=(2, 3), keepdim=True)).abs().mean(dim=(0, 1))
    assert float(amplitude[0, 2] / amplitude[0, 8]) == pytest.approx(4.0, rel=0.3)


@pytest.mark.parametrize("shape", [(1, 5, 7), (3, 16, 16)])
def test_shapes_are_those_that_are_asked_for(shape: tuple[int, int, int]) -> None:
    assert pink_noise(2, shape, torch.Generator().manual_seed(0)).shape == (2, *shape)


def test_images_approach_the_running_statistics(graph: FloatGraph) -> None:
    noise = synthetic_images(graph, 32, steps=0)
    made = synthetic_images(graph, 32, steps=30)
    assert made.images.dtype == torch.uint8
    assert made.shape == SHAPE
    assert made.labels is None
    before, after = (float(statistics_distance(graph, as_float(item.images))) for item in (noise, made))
    assert after < 0.7 * before


def test_the_distance_is_zero_at_the_statistics_themselves() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(2)).train()
    pixels = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    norm = network[1]
    assert isinstance(norm, nn.BatchNorm2d)
    norm.momentum = 1.0
    network(pixels)
    count = 16 * 6 * 6  # running variances are unbiased
    assert norm.running_var is not None
    norm.running_var *= (count - 1) / count
    assert float(statistics_distance(trace(network.eval(), (3, 8, 8)), pixels)) < 1e-4


def test_seeds_decide(graph: FloatGraph) -> None:
    first, again, other = (synthetic_images(graph, 4, steps=2, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)


def test_without_batch_norm_the_noise_is_all() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
    network(torch.zeros(1, *SHAPE))
    graph = trace(network, SHAPE)
    expected = pink_noise(5, SHAPE, torch.Generator().manual_seed(3))
    assert torch.equal(synthetic_images(graph, 5, seed=3).images, (expected * 255).round().to(torch.uint8))


def test_a_single_image_is_refused(graph: FloatGraph) -> None:
    with pytest.raises(UsageError, match="at least 2"):
        synthetic_images(graph, 1)
