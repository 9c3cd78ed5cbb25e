from __future__ import annotations

import pytest
import torch
from tests.exports import remembering
from tests.support import SHAPE, OddNet, make_images, randomise
from torch import nn

from quantinel.data.images import ImageSet
from quantinel.model import graph
from quantinel.model.graph import FloatGraph, trace

# Tensors of tests are small: more threads cost more than they bring, above all beside other work.
torch.set_num_threads(1)

_remembering = remembering()


@pytest.fixture(autouse=True)
def _one_export_for_a_structure(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everywhere but in the tests of tracing itself."""
    if "model" not in request.path.parts:
        monkeypatch.setattr(graph, "_export", _remembering)


@pytest.fixture(scope="session")
def odd_net() -> nn.Module:
    torch.manual_seed(0)
    net = randomise(OddNet())
    net.grouped.weight.data[3] = 0.0
    return net


@pytest.fixture(scope="session")
def odd_graph(odd_net: nn.Module) -> FloatGraph:
    return trace(odd_net, SHAPE)


@pytest.fixture(scope="session")
def images() -> ImageSet:
    return make_images(48)
