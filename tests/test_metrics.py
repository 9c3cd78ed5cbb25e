from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from quantinel.errors import InputError
from quantinel.metrics import Proportion, accuracy, agreement, attack_success

counts = st.integers(1, 20_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
classes = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=60)


@settings(deadline=None)
@given(counts)
def test_interval_contains_the_proportion_and_stays_in_bounds(count: tuple[int, int]) -> None:
    proportion = Proportion(*count)
    low, high = proportion.interval
    assert 0.0 <= low <= proportion.percent <= high <= 100.0
    assert low < high


@settings(deadline=None, max_examples=50)
@given(counts)
def test_interval_is_that_of_scipy(count: tuple[int, int]) -> None:
    expected = binomtest(*count).proportion_ci(0.95, method="wilson")
    assert Proportion(*count).interval == pytest.approx((100 * expected.low, 100 * expected.high), abs=1e-9)


@pytest.mark.parametrize(("hits", "bound"), [(0, 0), (37, 1)], ids=["none", "all"])
def test_interval_is_closed_at_the_ends(hits: int, bound: int) -> None:
    assert Proportion(hits, 37).interval[bound] == (0.0, 100.0)[bound]


def test_nothing_counted_is_said_and_never_zero() -> None:
    empty = Proportion(0, 0)
    assert math.isnan(empty.percent)
    assert empty.interval == (0.0, 100.0)
    assert str(empty) == "not measured"
    assert empty.to_dict()["percent"] is None
    json.dumps(empty.to_dict(), allow_nan=False)


def test_text_and_json_carry_n_and_the_interval() -> None:
    proportion = Proportion(9173, 10_000)
    assert str(proportion) == "91.73 % [91.17, 92.25] (n = 10000)"
    assert proportion.to_dict() == {
        "percent": 91.73,
        "interval95": [91.174, 92.2539],
        "hits": 9173,
        "n": 10_000,
    }


@pytest.mark.parametrize(("hits", "n"), [(-1, 5), (6, 5), (0, -1)])
def test_impossible_counts_are_refused(hits: int, n: int) -> None:
    with pytest.raises(InputError, match="no proportion"):
        Proportion(hits, n)


@given(st.integers(0, 40), st.integers(1, 1000))
def test_intervals_that_hold_together_are_wider(hits: int, count: int) -> None:
    one, (low, high) = Proportion(hits, 40).interval, Proportion(hits, 40).simultaneous(count)
    assert low <= one[0] + 1e-9
    assert high >= one[1] - 1e-9
    assert Proportion(hits, 40).simultaneous(1) == pytest.approx(one)


def test_accuracy_and_agreement_count_equal_entries() -> None:
    a, b = torch.tensor([0, 1, 2, 3]), torch.tensor([0, 1, 0, 0])
    assert accuracy(a, b) == agreement(a, b) == Proportion(2, 4)


def test_attack_success_excludes_the_target_class() -> None:
    labels = torch.tensor([0, 0, 1, 2, 3])
    predictions = torch.tensor([0, 0, 0, 0, 3])
    assert attack_success(predictions, labels, target_class=0) == Proportion(2, 3)


@given(classes, st.integers(0, 4))
def test_attack_success_counts_as_defined(pairs: list[tuple[int, int]], target: int) -> None:
    predictions = torch.tensor([p for p, _ in pairs], dtype=torch.int64)
    labels = torch.tensor([y for _, y in pairs], dtype=torch.int64)
    eligible = [(p, y) for p, y in pairs if y != target]
    measured = attack_success(predictions, labels, target)
    assert measured == Proportion(sum(p == target for p, _ in eligible), len(eligible))


@pytest.mark.parametrize("shape", [(4, 1), (3,), (4, 10)], ids=str)
@pytest.mark.parametrize("metric", [accuracy, agreement, lambda p, y: attack_success(p, y, 0)])
def test_unequal_shapes_are_refused_instead_of_broadcast(metric: object, shape: tuple[int, ...]) -> None:
    assert callable(metric)
    with pytest.raises(InputError, match="cannot be compared"):
        metric(torch.zeros(shape, dtype=torch.int64), torch.zeros(4, dtype=torch.int64))
