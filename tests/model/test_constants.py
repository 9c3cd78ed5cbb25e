"""Weights that a model computes from its parameters, and bare matrix products, are quantized layers as well."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tests.backends.test_onnx_qdq import check, random_integers
from tests.support import make_images
from torch import Tensor, nn

from quantinel.model.graph import float_products, trace


class Computed(nn.Module):
    """Weight standardisation, weight normalisation, a bare matrix, a normalised prototype head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.wide = torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 16, 3, padding=1))
        self.matrix = nn.Parameter(torch.randn(16, 12))
        self.shift = nn.Parameter(torch.randn(12))
        self.prototypes = nn.Parameter(torch.randn(5, 12))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.stem.weight
        weight = (weight - weight.mean((1, 2, 3), keepdim=True)) / weight.std((1, 2, 3), keepdim=True)
        x = F.relu(F.conv2d(x, weight, self.stem.bias, padding=1))
        x = F.relu(self.wide(x)).mean((2, 3))
        x = torch.addmm(self.shift, x, self.matrix)
        return 10 * F.normalize(x) @ F.normalize(self.prototypes).t()


def test_computed_weights_are_layers_and_run_in_integers() -> None:
    """Regression: they stayed in float, unaudited, or were refused."""
    images = make_images(8)
    module = Computed().eval()
    graph = trace(module, images.shape)
    assert [layer.name for layer in graph.layers] == ["stem", "wide", "matrix", "prototypes"]
    torch.testing.assert_close(graph(images.as_float()), module(images.as_float()).detach(), rtol=1e-4, atol=1e-4)
    check(random_integers(graph, images, "int8"), images, "onnxruntime-x86", True)


def test_masks_and_index_tables_are_stored() -> None:
    """Position tables looked up by constant indices, and a boolean mask made of constants."""

    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 4, 4)
            self.table = nn.Parameter(torch.randn(7, 4))
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            places = (torch.arange(4)[:, None] - torch.arange(4) + 3).flatten()
            x = self.stem(x).flatten(2).transpose(1, 2) + self.table[places]
            return self.head(x.masked_fill(places[:, None] > 5, 0.0).mean(1))

    images = make_images(8)
    check(random_integers(trace(Table(), images.shape), images, "int8"), images, "onnxruntime-x86", True)


def test_products_that_stay_in_float_are_named() -> None:
    """Regression: a transposed convolution is no quantized layer, and no report said so."""

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose2d(3, 4, 2, 2)
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.up(x).flatten(2)
            return self.head(torch.bmm(x, x.transpose(1, 2)).mean(2))

    assert float_products(trace(Decoder(), (3, 8, 8))) == (["bmm", "conv_transpose2d"], 48)
    assert float_products(trace(Computed(), (3, 8, 8))) == ([], 0)
