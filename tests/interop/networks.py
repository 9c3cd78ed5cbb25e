"""Networks with integers chosen at random, and images, for other runtimes to run."""

from __future__ import annotations

from functools import cache

import torch
from tests.support import SHAPE, OddNet, make_images, random_integers, randomise

from quantinel.data.images import ImageSet
from quantinel.data.sources import load_images
from quantinel.model.graph import trace
from quantinel.model.loading import load_model
from quantinel.model.normalization import Normalized
from quantinel.model.zoo import ARCHITECTURES, build
from quantinel.pipeline.demo import bundled_victim
from quantinel.quantization.quantized_model import QuantizedModel

NETWORKS = ("resnet20", "resnet18", "mobilenetv2_small", "vit_tiny", "odd")
"""ResNet-20 is the bundled victim, trained; the others have random weights and statistics of the data."""


@cache
def network(name: str) -> tuple[QuantizedModel, ImageSet]:
    """The int8 network and 250 test images.

    Args:
        name: one of `NETWORKS`.
    """
    torch.manual_seed(0)
    if name == "odd":
        module = randomise(OddNet())
        return random_integers(trace(module, SHAPE), make_images(128), "int8"), make_images(250, seed=1)
    calibration = load_images("bundled:calibration").take(torch.arange(256))
    images = load_images("bundled").take(torch.arange(250))
    if name == "resnet20":
        module = load_model(bundled_victim("int8")).module
    else:
        architecture = ARCHITECTURES[name]
        module = Normalized(build(name), architecture.mean, architecture.std).train()
        with torch.no_grad():
            for _ in range(5):
                module(calibration.as_float())  # BatchNorm statistics of the data
    return random_integers(trace(module.eval(), (3, 32, 32)), calibration, "int8"), images
