"""bfloat16 where the processor computes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from quantinel.training.mixed_precision import autocast, emulated

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    emulated.cache_clear()
    yield
    emulated.cache_clear()


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def pretend(**capabilities: object) -> None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)

    return pretend


def runs_in(enabled: bool) -> torch.dtype:
    with autocast(CPU, enabled):
        return torch.nn.functional.linear(torch.ones(2, 3), torch.ones(4, 3)).dtype


def test_float32_where_bfloat16_would_be_emulated(processor: Callable[..., None]) -> None:
    processor(architecture="x86_64", avx512_bf16=False, amx_bf16=False)
    assert emulated()
    assert runs_in(True) == torch.float32


@pytest.mark.parametrize(
    "capabilities",
    [
        {"architecture": "x86_64", "avx512_bf16": True},
        {"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": True},
        {"architecture": "aarch64"},
        {},
    ],
)
def test_bfloat16_elsewhere_and_where_nothing_is_known(
    processor: Callable[..., None], capabilities: dict[str, object]
) -> None:
    processor(**capabilities)
    assert not emulated()
    assert runs_in(True) == torch.bfloat16
    assert runs_in(False) == torch.float32


def test_torch_that_does_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not emulated()
