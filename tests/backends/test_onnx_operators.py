"""Every converter against torch: weights only are quantized, so the two differ by float summation alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from tests.backends.test_onnx_qdq import check, random_integers
from tests.support import make_images
from torch import Tensor, nn

from quantinel.backends.onnx_qdq import PROFILES, to_onnx
from quantinel.backends.runtime import Session
from quantinel.backends.verification import simulated_logits
from quantinel.errors import UnsupportedError
from quantinel.model.graph import trace

WEIGHT = torch.linspace(-1, 1, 8 * 8 * 9).reshape(8, 8, 3, 3)


class Around(nn.Module):
    """A function between a convolution (N, 8, 10, 14) and a linear layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.stem = nn.Conv2d(3, 8, 3)
        self.head = nn.Linear(function(torch.rand(1, 8, 10, 14)).flatten(1).shape[1], 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.function(self.stem(x)).flatten(1))


def standard(x: Tensor) -> Tensor:
    return (x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True)


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softplus": lambda x: F.softplus(x, 2.0),
    "selu": F.selu,
    "celu": lambda x: F.celu(x, 0.7),
    "log_sigmoid": F.logsigmoid,
    "square": torch.square,
    "glu": lambda x: F.glu(x, 1),
    "maximum": lambda x: torch.maximum(x[:, :4], x[:, 4:]) - torch.minimum(x[:, :4], x[:, 4:]),
    "where": lambda x: torch.where(x > 0.1, x, x * 0.5),
    "where_scalars": lambda x: torch.where(x != 0.0, 1.0, -1.0) * x,
    "masked_fill": lambda x: x.masked_fill(~(x <= 0.2), 0.5),
    "bool_to_float": lambda x: x * (x > 0).float(),
    "channel_shuffle": lambda x: F.channel_shuffle(x, 4),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "unflatten": lambda x: x.unflatten(1, (2, 4)).mean(2),
    "narrow": lambda x: x.narrow(1, 2, 3),
    "movedim": lambda x: x.movedim((1, 2), (3, 1)).swapaxes(1, 2),
    "flip": lambda x: x.flip(2, 3),
    "roll": lambda x: x.roll((3, -2), (2, 3)),
    "repeat": lambda x: x.repeat(1, 1, 1, 2),
    "index": lambda x: x[:, torch.tensor([5, 0, 3])],
    "einsum": lambda x: torch.einsum("bchw,bdhw->bcd", x, x) / 140,
    "zeros": lambda x: torch.cat([x, torch.zeros(x.shape[0], 1, 10, 14), torch.ones_like(x[:, :1])], 1),
    "max": lambda x: x.max(1, keepdim=True)[0] + x.min(1, keepdim=True).values + x.amin(1, keepdim=True),
    "logsumexp": lambda x: x.logsumexp((2, 3)),
    "standardised": standard,
    "variance": lambda x: torch.cat(torch.var_mean(x, (2, 3), correction=0), 1),
    "normalize": lambda x: F.normalize(x, dim=1) + F.normalize(x, p=1.0, dim=1),
    "instance_norm": F.instance_norm,
    "rms_norm": lambda x: F.rms_norm(x, (14,), eps=1e-4),
    "adaptive_uneven": lambda x: F.adaptive_avg_pool2d(x, (7, 3)),
    "adaptive_enlarging": lambda x: F.adaptive_avg_pool2d(x, (12, 15)),
    "adaptive_1d": lambda x: F.adaptive_avg_pool1d(x.flatten(2), 9),
    "adaptive_max": lambda x: F.adaptive_max_pool2d(x, 1).flatten(1) + F.adaptive_max_pool2d(x, (5, 7)).mean((2, 3)),
    "average_ceil": lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
    "average_ceil_inside": lambda x: F.avg_pool2d(x, (2, 3), 3, (1, 0), True, False),
    "average_divisor": lambda x: F.avg_pool2d(x, 3, 2, divisor_override=5),
    "average_1d": lambda x: F.avg_pool1d(x.flatten(2), 3, 2, 1, True, False),
    "max_1d": lambda x: F.max_pool1d(x.flatten(2), 3, 2, 1),
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "nearest_size": lambda x: F.interpolate(x, (15, 21)),
    "nearest_exact": lambda x: F.interpolate(x, (7, 20), mode="nearest-exact"),
    "bilinear": lambda x: F.interpolate(x, scale_factor=1.7, mode="bilinear"),
    "bilinear_corners": lambda x: F.interpolate(x, (7, 20), mode="bilinear", align_corners=True),
    "bicubic": lambda x: F.interpolate(x, (17, 20), mode="bicubic"),
    "transposed": lambda x: F.conv_transpose2d(x, WEIGHT, None, 2, 1, 1),
    "transposed_grouped": lambda x: F.conv_transpose2d(x, WEIGHT[:, :2], WEIGHT[0, :, 0, 0].repeat(1)[:4], groups=2),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_converter_agrees_with_torch(name: str) -> None:
    images = make_images(4, (3, 12, 16))
    model = random_integers(trace(Around(FUNCTIONS[name]), images.shape), images, "int8-weight-only")
    expected = simulated_logits(model.simulate(), images.images)
    logits = Session(to_onnx(model, PROFILES["onnxruntime-x86"]).SerializeToString()).logits(images.images)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_padding_and_bias_of_a_transposed_convolution_stay_with_it() -> None:
    """Regression: a decoder block between quantized layers runs, with every other layer in integers."""

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down = nn.Conv2d(3, 8, 3, 2, 1)
            self.up = nn.ConvTranspose2d(8, 8, 2, 2)
            self.head = nn.Conv2d(8, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(self.up(F.relu(self.down(x))))).mean((2, 3))

    images = make_images(8)
    check(random_integers(trace(Decoder(), images.shape), images, "int8"), images, "onnxruntime-x86", True)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x.max(1)[1].float(), "indices"),
        (lambda x: F.adaptive_max_pool2d(x, 3), "uneven windows"),
        (lambda x: x.to(torch.float16).float(), "float16"),
        (lambda x: x - x.std((0, 1, 2, 3)), "mixes its images"),
    ],
)
def test_what_onnx_cannot_express_is_refused_in_one_line(function: Callable[[Tensor], Tensor], message: str) -> None:
    images = make_images(4, (3, 12, 16))
    model = random_integers(trace(Around(function), images.shape), images, "int8-weight-only")
    with pytest.raises(UnsupportedError, match=message) as caught:
        to_onnx(model, PROFILES["onnxruntime-x86"])
    assert "\n" not in str(caught.value)
