from __future__ import annotations

import pytest
import torch
from tests.support import SHAPE, OddNet, make_images, randomise
from torch import nn

from quantinel.data.images import ImageSet
from quantinel.model.graph import FloatGraph, trace

# Tensors of tests are small: more threads cost more than they bring, above all beside other work.
torch.set_num_threads(1)


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
