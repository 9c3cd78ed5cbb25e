"""Pruning removes what it says, nothing more, and names read back."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support import OddNet, make_images, randomise
from torch import nn

from quantinel.errors import QuantinelError, UnsupportedError, UsageError
from quantinel.quantization.pruning import (
    PruningScheme,
    filter_mask,
    magnitude_mask,
    parse_pruning,
    prunable,
    prune,
    pruning_from_dict,
    removed,
    sparsity,
)
from quantinel.quantization.pruning_search import HIGHEST_RATE, anneal, resolved, scaled_rates, search_rates

rates = st.integers(0, 9999).map(lambda number: number / 10000)
schemes = (
    st.builds(lambda many: PruningScheme("l1-filters", tuple(many)), st.lists(rates, min_size=1, max_size=5))
    | st.builds(lambda rate: PruningScheme("l1-filters", (rate,), searched=True), rates)
    | st.builds(lambda rate: PruningScheme("magnitude", (rate,), "network"), rates)
    | st.builds(lambda many: PruningScheme("magnitude", tuple(many)), st.lists(rates, min_size=1, max_size=5))
)


@settings(deadline=None)
@given(schemes)
def test_names_and_dicts_read_back(scheme: PruningScheme) -> None:
    assert parse_pruning(scheme.name) == scheme
    assert parse_pruning(f" {scheme.name.upper()} ") == scheme
    assert pruning_from_dict({"kind": "pruner", **scheme.to_dict()}) == scheme


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        ("prune-l1-filters-0.3", PruningScheme()),
        ("prune-l1-filters-searched-0.3", PruningScheme(searched=True)),
        ("prune-magnitude-0.5", PruningScheme("magnitude", (0.5,), "network")),
        ("prune-magnitude-per-layer-0.5", PruningScheme("magnitude", (0.5,), "layer")),
        ("prune-l1-filters-0.1_0.25", PruningScheme("l1-filters", (0.1, 0.25))),
    ],
)
def test_what_names_mean(name: str, scheme: PruningScheme) -> None:
    assert parse_pruning(name) == scheme
    assert scheme.name == name


@pytest.mark.parametrize(
    "name",
    ["prune", "prune-l1-filters", "prune-l1-filters-1", "prune-l1-filters-0.3-", "prune-l1-filters-0.1__0.2", "int8",
     "prune-magnitude-0.3_0.4", "prune-l1-filters-per-layer-0.3", "prune-magnitude--0.1", "prune-l1-filters-0.1.2"],
)  # fmt: skip
def test_names_that_mean_nothing(name: str) -> None:
    with pytest.raises(UsageError):
        parse_pruning(name)


def test_impossible_schemes() -> None:
    for options in (
        {"method": "dice"}, {"scope": "galaxy"}, {"rates": ()}, {"rates": (math.nan,)}, {"rates": (1.0,)},
        {"scope": "network"}, {"rates": (0.1, 0.2), "searched": True}, {"method": "magnitude", "searched": True},
    ):  # fmt: skip
        with pytest.raises(UsageError, match="pruning"):
            PruningScheme(**options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="not a pruning scheme"):
        pruning_from_dict({"method": "l1-filters"})


@settings(deadline=None)
@given(rates, st.integers(1, 2000))
def test_counts_are_exact(rate: float, count: int) -> None:
    assert removed(rate, count) == math.floor(Fraction(str(rate)) * count)


@settings(deadline=None)
@given(rates, st.integers(1, 40), st.integers(0, 999))
def test_the_smallest_filters_go(rate: float, filters: int, seed: int) -> None:
    weight = torch.randn(filters, 2, 3, 3, generator=torch.Generator().manual_seed(seed))
    mask = filter_mask(weight, rate).flatten()
    norms = weight.abs().sum((1, 2, 3))
    assert int((mask == 0).sum()) == removed(rate, filters)
    if 0 < mask.sum() < filters:
        assert norms[mask == 0].max() <= norms[mask == 1].min()
    again = weight * mask[:, None, None, None]
    assert torch.equal(again * filter_mask(again, rate), again)


@settings(deadline=None)
@given(rates, st.integers(0, 999))
def test_the_smallest_weights_go(rate: float, seed: int) -> None:
    weight = torch.randn(7, 11, generator=torch.Generator().manual_seed(seed))
    mask = magnitude_mask(weight, rate)
    assert mask.shape == weight.shape
    assert int((mask == 0).sum()) == removed(rate, 77)
    if 0 < mask.sum() < 77:
        assert weight[mask == 0].abs().max() <= weight[mask == 1].abs().min()


@pytest.mark.parametrize("name", ["prune-l1-filters-0.3", "prune-magnitude-0.45", "prune-magnitude-per-layer-0.45"])
def test_a_pruned_network(name: str) -> None:
    module, scheme = randomise(OddNet()), parse_pruning(name)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    pruned = prune(module, scheme)
    for key, value in module.state_dict().items():
        assert torch.equal(value, before[key])
    changed = {key for key, value in pruned.state_dict().items() if not torch.equal(value, before[key])}
    assert changed <= {f"{layer}.weight" for layer in prunable(module, scheme.method)}
    for key in changed:
        kept = pruned.state_dict()[key] != 0
        assert torch.equal(pruned.state_dict()[key][kept], before[key][kept])
    for key, value in prune(pruned, scheme).state_dict().items():
        assert torch.equal(value, pruned.state_dict()[key])
    if scheme.scope == "network":
        total = sum(weight.numel() for weight in prunable(module, "magnitude").values())
        assert sparsity(pruned, "magnitude") == removed(0.45, total) / total


def test_a_rate_for_each_layer() -> None:
    module = OddNet()
    pruned = prune(module, parse_pruning("prune-l1-filters-0.5_0_0.25_0.9"))
    gone = [int((weight.flatten(1).abs().sum(1) == 0).sum()) for weight in prunable(pruned, "l1-filters").values()]
    assert gone == [4, 0, 2, 10]
    with pytest.raises(UsageError, match="2 rates, the network 4 layers"):
        prune(module, parse_pruning("prune-l1-filters-0.5_0"))
    with pytest.raises(UsageError, match="search them first"):
        prune(module, parse_pruning("prune-l1-filters-searched-0.5"))
    with pytest.raises(UnsupportedError, match="no layer to prune"):
        prune(nn.Sequential(nn.Linear(3, 2)), PruningScheme())


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.05, 0.85), st.integers(0, 99))
def test_scaled_rates_meet_the_target(start: list[float], target: float, seed: int) -> None:
    sizes = torch.randint(1, 5000, (len(start),), generator=torch.Generator().manual_seed(seed)).double()
    found = scaled_rates(torch.tensor(start, dtype=torch.float64), sizes, target)
    assert float(found.max()) <= HIGHEST_RATE
    assert float((found * sizes).sum() / sizes.sum()) == pytest.approx(target, abs=1e-6)


def test_annealing_finds_the_layer_that_does_not_matter() -> None:
    calls: list[tuple[float, ...]] = []

    def score(found: tuple[float, ...]) -> float:
        calls.append(found)
        return 100.0 - 100.0 * found[0]  # only the first layer matters

    best = anneal([100, 100, 100], 0.3, score, steps=40, seed=3)
    assert calls[0] == (0.3, 0.3, 0.3)
    assert len(calls) == 41
    assert score(best) == max(map(score, list(calls)))
    assert best[0] < 0.1
    assert sum(best) == pytest.approx(0.9, abs=1e-3)
    assert best == anneal([100, 100, 100], 0.3, score, steps=40, seed=3)


def test_a_search_on_a_network() -> None:
    module, images = randomise(OddNet()), make_images(30)
    found = search_rates(module, images, 0.4, seed=1, steps=4)
    assert found == search_rates(module, images, 0.4, seed=1, steps=4)
    sizes = [weight.numel() for weight in prunable(module, "l1-filters").values()]
    share = sum(rate * size for rate, size in zip(found.rates, sizes, strict=True)) / sum(sizes)
    assert share == pytest.approx(0.4, abs=1e-3)
    unlabelled = type(images)(images.images, None, "unlabelled")
    assert len(resolved(PruningScheme(searched=True), module, unlabelled).rates) == 4
    fixed = PruningScheme()
    assert resolved(fixed, module, images) is fixed
    with pytest.raises(QuantinelError):
        resolved(PruningScheme("l1-filters", (0.1, 0.2)), module, images)
