from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from quantinel.bench.auc import area_under_curve
from quantinel.errors import InputError


def test_the_area_is_that_of_mann_and_whitney() -> None:
    generator = np.random.default_rng(0)
    attacked, clean = generator.integers(2, 9, 30).tolist(), generator.integers(0, 7, 20).tolist()
    area = area_under_curve(attacked, clean)
    assert area.value == pytest.approx(mannwhitneyu(attacked, clean).statistic / 600)
    assert area.low < area.value < area.high


def test_perfect_separation_of_few_models_proves_little() -> None:
    few, many = area_under_curve([1.0] * 2, [0.0] * 2), area_under_curve([1.0] * 100, [0.0] * 100)
    assert few.value == few.high == many.value == 1.0
    assert few.low < 0.6 < 0.9 < many.low
    assert area_under_curve([0.0] * 2, [1.0] * 2).high == pytest.approx(1 - few.low)


def test_the_interval_covers_what_it_promises() -> None:
    generator = np.random.default_rng(1)
    truth = 0.9213503964748575  # P(N(2, 1) > N(0, 1))
    covered = 0
    for _ in range(400):
        area = area_under_curve(generator.normal(2, 1, 12).tolist(), generator.normal(0, 1, 12).tolist())
        covered += area.low <= truth <= area.high
    assert covered / 400 >= 0.91


def test_both_kinds_are_needed() -> None:
    with pytest.raises(InputError, match="both kinds"):
        area_under_curve([1.0], [])
