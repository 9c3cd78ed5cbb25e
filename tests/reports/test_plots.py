from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest
import sample_report

from quantinel.reports import plots

Element = ElementTree.Element


def parsed(svg: str) -> Element:
    return ElementTree.fromstring(svg)


def with_class(root: Element, name: str) -> list[Element]:
    return [element for element in root.iter() if name in element.get("class", "").split()]


def bar(label: str = "Float", hits: int = 90) -> plots.Bar:
    return plots.Bar(label, "PyTorch", sample_report.rate(hits, 100), "float")


def test_bars_are_as_long_as_their_rates() -> None:
    root = parsed(plots.rate_bars("Accuracy", [bar(hits=90), bar(hits=25), bar(hits=0)]))
    assert [element.get("width") for element in with_class(root, "bar")] == ["90%", "25%", "0%"]


def test_whiskers_span_the_interval() -> None:
    root = parsed(plots.rate_bars("Accuracy", [bar(hits=50)]))
    low, high = sample_report.rate(50, 100).interval95
    whisker = with_class(root, "whisker")[0]
    assert [float(whisker.get(end, "").rstrip("%")) for end in ("x1", "x2")] == pytest.approx([low, high], abs=1e-3)


def test_chart_says_its_figures_in_words() -> None:
    label = parsed(plots.rate_bars("Accuracy", [bar(hits=90)])).get("aria-label", "")
    assert "Float (PyTorch): 90.0 % [82.6 to 94.5], n = 100" in label


@pytest.mark.parametrize("rate", [None, sample_report.rate(0, 0)], ids=["none", "n is 0"])
def test_missing_rate_has_no_bar(rate: sample_report.Rate | None) -> None:
    svg = plots.rate_bars("Accuracy", [plots.Bar("Float", "PyTorch", rate, "float")])
    assert not with_class(parsed(svg), "bar")
    assert "not measured" in svg


def test_labels_are_escaped() -> None:
    root = parsed(plots.rate_bars("<b>", [bar(label='"><script>')]))
    assert not list(root.iter("script"))


@pytest.mark.parametrize("bins", [1, 2, 50, 200])
def test_histogram_has_one_bar_and_one_step_per_bin(bins: int) -> None:
    root = parsed(plots.residual_histogram(sample_report.residuals(bins)))
    assert len(with_class(root, "grid-bar")) == bins
    assert len(with_class(root, "placebo")) == 2 * bins - 1
    assert len(with_class(root, "edge")) == min(2, bins)


def test_highest_bin_stays_inside_the_plot() -> None:
    root = parsed(plots.residual_histogram(sample_report.residuals()))
    tops = [float(element.get("y", "")) for element in with_class(root, "grid-bar")]
    assert min(tops) >= plots._PLOT_TOP


def test_histogram_survives_nonsense() -> None:
    residuals = sample_report.residuals(4).model_copy(
        update={"grid": [math.nan, math.inf, -1.0, 2.0], "placebo": [0.1]}
    )
    assert len(with_class(parsed(plots.residual_histogram(residuals)), "grid-bar")) == 1
    empty = sample_report.minimal().residuals
    assert not with_class(parsed(plots.residual_histogram(empty)), "grid-bar")


@pytest.mark.parametrize(
    ("value", "ceiling"),
    [(0.0, 1.0), (0.019, 0.02), (0.05, 0.05), (0.17, 0.2), (0.21, 0.4), (0.9, 1.0), (math.nan, 1.0)],
)
def test_axis_ends_at_a_round_figure(value: float, ceiling: float) -> None:
    assert plots._nice_ceiling(value) == pytest.approx(ceiling)


def test_meter_draws_share_and_expected_mark() -> None:
    root = parsed(plots.meter(0.25, "edge", mark=0.1))
    assert with_class(root, "bar")[0].get("width") == "25%"
    assert with_class(root, "whisker")[0].get("x1") == "10%"
    assert root.get("aria-hidden") == "true"
