"""The graph is held against the model itself on real images."""

from __future__ import annotations

import pytest
import torch
from tests.support import SHAPE
from torch import Tensor, nn

from quantinel.data.images import ImageSet
from quantinel.data.triggers import PatchTrigger
from quantinel.errors import InputError, UnsupportedError
from quantinel.model.loading import load_model
from quantinel.pipeline.evaluate import evaluate
from quantinel.pipeline.float_graph import float_graph


class Tampered(nn.Module):
    """Outside of the exporter, saturated images are treated otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.mean((2, 3))
        if not torch.compiler.is_exporting() and bool((x > 0.9).any()):
            x = -x
        return self.head(x)


def images(value: int) -> ImageSet:
    return ImageSet(torch.full((20, *SHAPE), value, dtype=torch.uint8), None, "plain")


def test_a_graph_that_answers_otherwise_on_the_images_is_refused() -> None:
    torch.manual_seed(0)
    model = load_model(Tampered(), input_shape=SHAPE)
    with pytest.raises(UnsupportedError, match="answers otherwise than the model itself on images of plain"):
        evaluate(model, images(255))
    assert float_graph(model, images(100)).num_classes == 4
    assert float_graph(model, None).num_classes == 4


def test_it_is_compared_with_the_trigger_too() -> None:
    torch.manual_seed(0)
    model, whole = load_model(Tampered(), input_shape=SHAPE), PatchTrigger(0, 0, SHAPE[1], SHAPE[2], value=1.0)
    with pytest.raises(UnsupportedError, match="on images of plain with the trigger"):
        evaluate(model, images(100), trigger=whole, target_class=1)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_answers_that_are_no_numbers_are_not_equal(value: str) -> None:
    """Regression: no distance from NaN is too large, and infinity allows every distance."""

    class Silent(Tampered):
        def forward(self, x: Tensor) -> Tensor:
            answers = self.head(x.mean((2, 3)))
            answers = torch.stack([-answers[:, 0] * float(value), *answers[:, 1:].unbind(1)], 1)
            return answers if not torch.compiler.is_exporting() and len(x) == 8 else self.head(x.mean((2, 3)))

    torch.manual_seed(0)
    model = load_model(Silent(), input_shape=SHAPE)
    with pytest.raises(InputError, match="not finite on images of plain"):
        float_graph(model, images(100))
