"""Small networks and images that many tests share; everything is seeded and made on the spot."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantinel.data.images import ImageSet
from quantinel.model.graph import FloatGraph
from quantinel.quantization.calibration import calibrate
from quantinel.quantization.quantized_model import QuantizedModel, quantize_nearest
from quantinel.quantization.rounding import rounding_cell
from quantinel.quantization.scheme import parse_scheme

SHAPE = (3, 16, 16)


class OddNet(nn.Module):
    """What zoo models do not have: grouped, depthwise, dilated and padded convolutions, negative gammas, a dead
    channel, a shared ReLU, a concatenation, 1x1 bottleneck, SiLU, and a hidden linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding="same")
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=2, bias=False)
        self.norm2 = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, (3, 5), stride=2, padding=(1, 2), groups=8)
        self.point = nn.Conv2d(16, 12, 1)
        self.relu = nn.ReLU(inplace=True)
        self.hidden = nn.Linear(12, 10)
        self.head = nn.Linear(10, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.stem(x)))
        x = self.relu(self.norm2(self.grouped(x)) + x)
        x = torch.cat([F.silu(self.depthwise(x)), F.max_pool2d(x, 2)], dim=1)
        x = self.relu(self.point(x)).mean(dim=(2, 3))
        return self.head(self.relu(self.hidden(x)))


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give normalisation layers statistics worth folding: negative gammas, shifted means, a dead channel."""
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            size = layer.num_features
            layer.weight.data = torch.randn(size, generator=generator)
            layer.bias.data = torch.randn(size, generator=generator) * 0.3
            layer.running_mean = torch.randn(size, generator=generator) * 0.2
            layer.running_var = torch.rand(size, generator=generator) + 0.3
    return module.eval()


def make_images(count: int, shape: tuple[int, int, int] = SHAPE, classes: int = 5, seed: int = 0) -> ImageSet:
    """Smooth random pictures with labels."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, shape[0], 4, 4, generator=generator)
    pixels = F.interpolate(coarse, shape[1:], mode="bilinear", align_corners=False)
    labels = torch.randint(classes, (count,), generator=generator)
    return ImageSet((pixels * 255).round().to(torch.uint8), labels, "synthetic")


def random_integers(graph: FloatGraph, images: ImageSet, scheme: str) -> QuantizedModel:
    """A quantized model whose codes are floor or ceiling at random, so that any re-rounding shows."""
    model = quantize_nearest(graph, calibrate(graph, images, parse_scheme(scheme)))
    generator = torch.Generator().manual_seed(7)
    codes = {}
    for name, layer in model.layers.items():
        cell = rounding_cell(graph.weight(layer.layer), layer.scale, model.scheme)
        pick = torch.rand(cell.floor.shape, generator=generator) < 0.5
        codes[name] = torch.where(pick, cell.floor, cell.ceil).to(torch.int8)
    return model.with_codes(codes)
