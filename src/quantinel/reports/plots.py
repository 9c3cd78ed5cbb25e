"""Charts as inline SVG, drawn by hand.

Horizontal positions are percentages, so that text keeps its size on any screen. Colours come from the style sheet of
the page (classes ``float``, ``nearest``, ``hardened``, ...), so that the charts follow light and dark mode. Every chart
carries its figures as text for readers that cannot see it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from quantinel.audit.report import Rate, ResidualHistogram
from quantinel.reports import wording
from quantinel.reports.svg import at, chart, element

_ROW, _BAR, _AXIS = 56, 16, 30
_CLASS_ROW = 42
_PLOT_TOP, _PLOT_HEIGHT = 26, 190


@dataclass(frozen=True)
class Bar:
    """One bar of a chart of rates; ``kind`` is the class that colours it."""

    label: str
    note: str
    rate: Rate | None
    kind: str


def rate_bars(title: str, bars: Sequence[Bar]) -> Markup:
    """Horizontal bars from 0 to 100 % with 95 % intervals as whiskers.

    Args:
        title: what is measured, with its unit.
        bars: one per model variant, from top to bottom.
    """
    bottom = _ROW * len(bars) - 6
    parts = [_grid_line(share, bottom) for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    for index, bar in enumerate(bars):
        parts += _rate_bar(bar, index * _ROW)
    described = "; ".join(f"{bar.label} ({bar.note}): {wording.rate_in_full(bar.rate)}" for bar in bars)
    return chart(title, described, bottom + _AXIS - 6, parts)


def _grid_line(share: float, bottom: int) -> Markup:
    anchor = {0.0: "start", 1.0: "end"}.get(share, "middle")
    line = element("line", x1=at(share), x2=at(share), y1=20, y2=bottom, class_="grid")
    text = f"{100 * share:.0f} %"
    return line + element("text", text, x=at(share), y=bottom + 16, text_anchor=anchor, class_="tick")


def _rate_bar(bar: Bar, top: int) -> list[Markup]:
    name = Markup("{} {}").format(element("tspan", bar.label, class_="name"), element("tspan", bar.note, class_="note"))
    parts = [element("text", name, x="0", y=top + 18)]
    value, y = bar.rate, top + 26
    parts.append(element("rect", x="0", y=y, width="100%", height=_BAR, class_="track"))
    if value is None or value.percent is None:
        return [
            *parts,
            element("text", wording.NOT_MEASURED, x="100%", y=top + 18, text_anchor="end", class_="note"),
        ]
    low, high = (at(bound / 100) for bound in value.interval95)
    middle = y + _BAR / 2
    written = Markup("{} {}").format(
        element("tspan", wording.rate(value), class_="value"),
        element("tspan", f"[{wording.interval(value)}]", class_="note interval"),
    )
    whisker = [
        element("line", x1=low, x2=high, y1=middle, y2=middle, class_="whisker"),
        element("line", x1=low, x2=low, y1=y + 3, y2=y + _BAR - 3, class_="whisker"),
        element("line", x1=high, x2=high, y1=y + 3, y2=y + _BAR - 3, class_="whisker"),
    ]
    return [
        *parts,
        element("text", written, x="100%", y=top + 18, text_anchor="end"),
        element("rect", x="0", y=y, width=at(value.percent / 100), height=_BAR, class_=f"bar {bar.kind}"),
        *whisker,
    ]


def residual_histogram(residuals: ResidualHistogram) -> Markup:
    """Where weights sit between grid points: bars for the deployment grid, a stepped line for the placebo grids."""
    bins = list(zip(residuals.edges, residuals.edges[1:], residuals.grid, residuals.placebo, strict=False))
    top = _nice_ceiling(max((max(grid, placebo) for *_, grid, placebo in bins), default=0.0))
    parts = [element("text", "share of the weights per bin", x="0", y=14, class_="tick")]
    parts += [part for share in (0.0, 0.5, 1.0) for part in _level(share, top)]
    previous: float | None = None
    for index, (left, right, grid, placebo) in enumerate(bins):
        edge = " edge" if index in (0, len(bins) - 1) else ""
        parts.append(_column(left + 0.5, right + 0.5, grid / top, f"bar grid-bar{edge}"))
        parts += _step(left + 0.5, right + 0.5, placebo / top, previous)
        previous = placebo / top
    axis = _PLOT_TOP + _PLOT_HEIGHT + 18
    for position, anchor in (
        (-0.5, "start"),
        (-0.25, "middle"),
        (0.0, "middle"),
        (0.25, "middle"),
        (0.5, "end"),
    ):
        parts.append(
            element(
                "text",
                f"{position:g}".replace("-", "−"),
                x=at(position + 0.5),
                y=axis,
                text_anchor=anchor,
                class_="tick",
            )
        )
    unit = "distance from the nearest grid point, in steps"
    parts.append(element("text", unit, x="50%", y=axis + 20, text_anchor="middle", class_="tick"))
    described = (
        f"{len(bins)} bins. Within 0.005 steps of a rounding boundary: {wording.share(residuals.edge_share)} "
        f"of the weights on the deployment grid, {wording.share(residuals.placebo_edge_share)} on the placebo grids."
    )
    return chart("Where the weights sit between grid points", described, axis + 28, parts)


def _height(share: float) -> float:
    inside = min(1.0, max(0.0, share)) if math.isfinite(share) else 0.0
    return round(_PLOT_HEIGHT * inside, 2)


def _level(share: float, top: float) -> list[Markup]:
    """A line across the plot with its figure to the left, in the margin that the page leaves for it."""
    y = _PLOT_TOP + _PLOT_HEIGHT - _height(share)
    text = f"{100 * share * top:.3g} %"
    return [
        element("line", x1="0", x2="100%", y1=y, y2=y, class_="grid"),
        element("text", text, x="0", dx="-8", y=y + 4, text_anchor="end", class_="tick"),
    ]


def _column(left: float, right: float, share: float, kind: str) -> Markup:
    height = _height(share)
    y = _PLOT_TOP + _PLOT_HEIGHT - height
    return element("rect", x=at(left), width=at(right - left), y=y, height=height, class_=kind)


def _step(left: float, right: float, share: float, previous: float | None) -> list[Markup]:
    y = _PLOT_TOP + _PLOT_HEIGHT - _height(share)
    flat = element("line", x1=at(left), x2=at(right), y1=y, y2=y, class_="placebo")
    if previous is None:
        return [flat]
    before = _PLOT_TOP + _PLOT_HEIGHT - _height(previous)
    return [element("line", x1=at(left), x2=at(left), y1=before, y2=y, class_="placebo"), flat]


def _nice_ceiling(value: float) -> float:
    """The next of 1, 2, 4, 5, 10 times a power of ten above ``value``."""
    if not math.isfinite(value) or value <= 0:
        return 1.0
    unit = 10.0 ** math.floor(math.log10(value))
    return next(step * unit for step in (1, 2, 4, 5, 10, 20) if step * unit >= value * (1 - 1e-9))


def meter(share: float, kind: str, mark: float | None = None) -> Markup:
    """A small bar inside a table, beside the figure that it shows; ``mark`` draws what would be expected."""
    parts = [
        element("rect", x="0", y="0", width="100%", height="100%", class_="track"),
        element("rect", x="0", y="0", width=at(share), height="100%", class_=f"bar {kind}"),
    ]
    if mark is not None:
        parts.append(element("line", x1=at(mark), x2=at(mark), y1="0", y2="100%", class_="whisker"))
    content = Markup("").join(parts)
    return element("svg", content, class_="meter", width="100%", height="6", aria_hidden="true")


@dataclass(frozen=True)
class ClassBar:
    """Share of the images that two models answer with one class, in [0, 1]."""

    name: str
    floating: float
    compressed: float


def class_bars(title: str, bars: Sequence[ClassBar]) -> Markup:
    """Two bars a class, float above compressed, on one scale from 0."""
    largest = max((max(bar.floating, bar.compressed) for bar in bars), default=0.0) or 1.0
    parts: list[Markup] = []
    for index, bar in enumerate(bars):
        top = index * _CLASS_ROW
        figures = f"{wording.share(bar.floating)} → {wording.share(bar.compressed)}"
        parts += _named_bar(bar.name, figures, top)
        parts.append(_flat_bar(bar.floating / largest, top + 20, "float"))
        parts.append(_flat_bar(bar.compressed / largest, top + 27, "nearest"))
    described = "; ".join(
        f"{bar.name}: {wording.share(bar.floating)} in float, {wording.share(bar.compressed)} compressed"
        for bar in bars
    )
    return chart(title, described, _CLASS_ROW * len(bars), parts)


@dataclass(frozen=True)
class ScoreBar:
    """A detector's figure for one class; ``suspect`` is the class that it names."""

    name: str
    score: float
    suspect: bool


def score_bars(title: str, bars: Sequence[ScoreBar]) -> Markup:
    """One bar a class, on one scale from 0; figures below 0 have no bar."""
    largest = max((bar.score for bar in bars), default=0.0)
    largest = largest if largest > 0 else 1.0
    parts: list[Markup] = []
    for index, bar in enumerate(bars):
        top = index * _CLASS_ROW
        parts += _named_bar(bar.name + (" (suspected)" if bar.suspect else ""), wording.figure(bar.score), top)
        parts.append(_flat_bar(bar.score / largest, top + 21, "nearest" if bar.suspect else "plain", 10))
    described = "; ".join(f"{bar.name}: {wording.figure(bar.score)}" for bar in bars)
    return chart(title, described, _CLASS_ROW * len(bars), parts)


def _named_bar(name: str, figure: str, top: int) -> list[Markup]:
    """The line above a bar."""
    return [
        element("text", name, x="0", y=top + 15, class_="name"),
        element("text", figure, x="100%", y=top + 15, text_anchor="end", class_="note"),
    ]


def _flat_bar(share: float, y: int, kind: str, height: int = 6) -> Markup:
    track = element("rect", x="0", y=y, width="100%", height=height, class_="track")
    return track + element("rect", x="0", y=y, width=at(share), height=height, class_=f"bar {kind}")
