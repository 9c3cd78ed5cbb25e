"""Regions of another autograd or autocast mode are part of the graph; autocast that is on is refused."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
import torch.nn.functional as F
from tests.model.archive_files import export
from tests.support import SHAPE, randomise
from torch import Tensor, nn

from quantinel.errors import InputError, UnsupportedError
from quantinel.model.archive import parse_pt2
from quantinel.model.graph import trace

Mode = Callable[[], AbstractContextManager[object]]


class Net(nn.Module):
    """A backbone under a mode, as frozen ones are, and a head outside of it (or inside)."""

    def __init__(self, mode: Mode, whole: bool = False) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 4)
        self.mode, self.whole = mode, whole

    def forward(self, x: Tensor) -> Tensor:
        with self.mode():
            x = F.relu_(self.norm(self.conv(x - torch.tensor(0.5))))
            if self.whole:
                return self.head(x.mean((2, 3)))
            y = x.reshape(x.shape[0], 8, -1)
        return self.head(y.mean(2) + x.mean((2, 3)))


def net(mode: Mode, whole: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return randomise(Net(mode, whole))


def autocast_off() -> AbstractContextManager[object]:
    return torch.autocast("cpu", enabled=False)


def grad_as_in_training() -> AbstractContextManager[object]:
    return torch.set_grad_enabled(False)


MODES = (torch.no_grad, torch.enable_grad, torch.inference_mode, grad_as_in_training, autocast_off)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_the_graph_is_the_same_whatever_the_mode(mode: Mode, whole: bool) -> None:
    """Regression: such a region was refused as control flow, or not, as the caller's own mode had it."""
    module = net(mode, whole)
    images = torch.rand(3, *SHAPE)
    with torch.no_grad():
        expected = module(images)
    programs = set()
    for caller in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with caller():
            graph = trace(module, SHAPE)
        torch.testing.assert_close(graph(images), expected, rtol=1e-4, atol=1e-5)
        assert [layer.name for layer in graph.layers] == ["conv", "head"]
        assert set(graph.batch_norms) == {"conv"}
        programs.add(str(graph.module.graph))
    assert len(programs) == 1


class Nested(nn.Module):
    """Regions in regions, one after the other, and one that returns what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.conv(x)
            with autocast_off():
                y = x * 2
                with torch.enable_grad():
                    y = y + x
        with torch.no_grad():
            same, z = x, y.relu()
        return self.head((same - z).mean((2, 3)))


def test_regions_in_regions() -> None:
    torch.manual_seed(0)
    module, images = Nested().eval(), torch.rand(3, *SHAPE)
    torch.testing.assert_close(trace(module, SHAPE)(images), module(images).detach())


class Branch(nn.Module):
    """Control flow inside a region."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = torch.cond(x.sum() > 0, lambda y: y * 2, lambda y: y * 3, (x,))
        return self.head(x.mean((2, 3)))


def test_control_flow_in_a_region_is_still_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"control flow or a sub-graph \(true_graph_0\)"):
        trace(Branch().eval(), SHAPE)


@pytest.mark.parametrize("outer", [torch.enable_grad, torch.no_grad])
def test_autocast_is_refused_by_name(outer: Mode) -> None:
    """Regression: the message spoke of control flow in submod_1."""

    class Cast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            with outer(), torch.autocast("cpu", dtype=torch.bfloat16):
                x = self.conv(x)
            return self.head(x.float().mean((2, 3)))

    with pytest.raises(UnsupportedError, match=r"bfloat16 under torch.autocast\('cpu'\); remove autocast .*enabled="):
        trace(Cast().eval(), SHAPE)


@pytest.mark.parametrize("mode", [torch.no_grad, autocast_off])
def test_archives_with_regions_say_what_to_do(mode: Mode) -> None:
    """Their graphs are not read, but the message names the cause."""
    with pytest.raises(InputError, match=r"give the model itself .* or remove torch.no_grad\(\), torch.autocast"):
        parse_pt2(export(net(mode), torch.rand(2, *SHAPE)), "regions.pt2")
