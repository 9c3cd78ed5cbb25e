"""Plots of a suite as inline SVG: accuracy against attack success, and ROC curves.

No figure is carried by colour alone: every method has a shape of its own, and every point and curve its figures as
text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from quantinel.bench.cells import FLOAT
from quantinel.bench.site.curves import Roc
from quantinel.bench.site.entries import NEAREST, Entry
from quantinel.reports.svg import at, chart, element

_TOP, _HEIGHT = 22, 260
_INTERVALS_UP_TO = 24
"""Points of one chart that are still drawn with their intervals; more would hide each other."""
_SHAPES = (
    "M0-6L6 5H-6z",
    "M0-6.5L6.5 0 0 6.5-6.5 0z",
    "M0 6L6-5H-6z",
    "M-2-6H2V-2H6V2H2V6H-2V2H-6V-2H-2z",
    "M0-6.5L1.9-2 6.5-2 2.8 1 4.1 5.8 0 3-4.1 5.8-2.8 1-6.5-2-1.9-2z",
    "M-6-3L0-6.5 6-3V3L0 6.5-6 3z",
    "M-4.2-6L0-1.8 4.2-6 6-4.2 1.8 0 6 4.2 4.2 6 0 1.8-4.2 6-6 4.2-1.8 0-6-4.2z",
)
_CIRCLE = "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0z"
_SQUARE = "M-5-5H5V5H-5z"
COLOURS = 6


@dataclass(frozen=True)
class Mark:
    """How a method is drawn: a class for the colour and a path for the shape."""

    colour: str
    shape: str

    def draw(self, **attributes: object) -> Markup:
        """The mark around (0, 0)."""
        return element("path", d=self.shape, class_=f"mark {self.colour}", **attributes)

    def key(self) -> Markup:
        """The mark for a legend or a table."""
        return element(
            "svg", self.draw(), class_="mark-key", viewBox="-8 -8 16 16", width=14, height=14, aria_hidden="true"
        )


def marks(methods: Sequence[str]) -> dict[str, Mark]:
    """A mark for every method; float and nearest look the same on every page."""
    fixed = {FLOAT: Mark("float", _CIRCLE), NEAREST: Mark("nearest", _SQUARE)}
    others = [name for name in methods if name not in fixed]
    return fixed | {
        name: Mark(f"series-{index % COLOURS}", _SHAPES[index % len(_SHAPES)]) for index, name in enumerate(others)
    }


def scatter(title: str, entries: Sequence[Entry], moves: Sequence[tuple[Entry, Entry]], by: dict[str, Mark]) -> Markup:
    """Accuracy (upwards) against attack success (to the right); good defenses end in the upper left.

    Args:
        title: what is shown.
        entries: cells with both figures.
        moves: (from, to) cells that a faint line joins: what a defense did to the same model.
        by: mark of each method.
    """
    low, high = _range([row.cda for entry in entries if (row := entry.row) is not None and row.cda is not None])
    parts = _frame(low, high)

    def place(entry: Entry) -> tuple[float, float] | None:
        row = entry.row
        if row is None or row.cda is None or row.asr is None:
            return None
        return row.asr / 100, _TOP + _HEIGHT * (1 - (row.cda - low) / (high - low))

    for before, after in moves:
        start, end = place(before), place(after)
        if start is not None and end is not None:
            parts.append(
                element("line", x1=at(start[0]), y1=_px(start[1]), x2=at(end[0]), y2=_px(end[1]), class_="move")
            )
    points = [(entry, where) for entry in entries if (where := place(entry)) is not None]
    if len(points) <= _INTERVALS_UP_TO:
        parts += [part for entry, where in points for part in _intervals(entry, where, low, high)]
    for entry, (x, y) in points:
        mark = element("svg", by[entry.method].draw(), x=at(x), y=_px(y), overflow="visible")
        link = element("title", told(entry)) + mark
        parts.append(element("a", link, href=f"cells/{entry.page}", aria_label=told(entry)))
    described = "; ".join(told(entry) for entry, _ in points[:40])
    more = f"; and {len(points) - 40} more, in the table" if len(points) > 40 else ""
    # a chart whose points are links is a group for readers, not one picture
    return Markup(chart(title, described + more, _TOP + _HEIGHT + 46, parts).replace('role="img"', 'role="group"', 1))


def told(entry: Entry) -> str:
    """One point in words."""
    row = entry.row
    if row is None or row.cda is None or row.asr is None:
        return entry.id
    name = " ".join(part for part in (entry.cell.model, entry.cell.attack) if part != "none")
    return f"{name}, {entry.cell.scheme}, {entry.method}: accuracy {row.cda:.1f} %, attack success {row.asr:.1f} %"


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Ends of the accuracy axis: the smallest range around all values whose four parts end at round figures."""
    low, high = max(0.0, min(values, default=0.0) - 0.5), min(100.0, max(values, default=100.0) + 0.5)
    for span in (10, 20, 40, 60, 80):
        step = span / 4
        start = min(step * math.floor(low / step), 100.0 - span)
        if start + span >= high:
            return start, start + span
    return 0.0, 100.0


def _px(value: float) -> str:
    return f"{value:.1f}"


def _frame(low: float, high: float) -> list[Markup]:
    parts = [element("text", "accuracy on clean images", x="0", y=10, class_="tick")]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = _TOP + _HEIGHT * (1 - share)
        parts += _level(y, f"{low + share * (high - low):.4g} %")
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts += _upright(share, f"{100 * share:.0f} %")
    axis = "attack success on triggered images"
    parts.append(element("text", axis, x="50%", y=_TOP + _HEIGHT + 38, text_anchor="middle", class_="tick"))
    return parts


def _level(y: float, text: str) -> list[Markup]:
    return [
        element("line", x1="0", x2="100%", y1=_px(y), y2=_px(y), class_="grid"),
        element("text", text, x="0", dx="-8", y=_px(y + 4), text_anchor="end", class_="tick"),
    ]


def _upright(share: float, text: str) -> list[Markup]:
    anchor = {0.0: "start", 1.0: "end"}.get(share, "middle")
    return [
        element("line", x1=at(share), x2=at(share), y1=_TOP, y2=_TOP + _HEIGHT, class_="grid"),
        element("text", text, x=at(share), y=_TOP + _HEIGHT + 18, text_anchor=anchor, class_="tick"),
    ]


def _intervals(entry: Entry, where: tuple[float, float], low: float, high: float) -> list[Markup]:
    row, parts = entry.row, []
    assert row is not None
    x, y = where
    if row.asr_interval is not None:
        left, right = (at(bound / 100) for bound in row.asr_interval)
        parts.append(element("line", x1=left, x2=right, y1=_px(y), y2=_px(y), class_="spread"))
    if row.cda_interval is not None:
        ends = [min(max((bound - low) / (high - low), 0.0), 1.0) for bound in row.cda_interval]
        top, bottom = (_px(_TOP + _HEIGHT * (1 - end)) for end in reversed(ends))
        parts.append(element("line", x1=at(x), x2=at(x), y1=top, y2=bottom, class_="spread"))
    return parts


def roc_chart(roc: Roc) -> Markup:
    """A ROC curve with the diagonal of a coin toss."""
    low, high = roc.interval
    counts = f"{len(roc.positives)} victims, {len(roc.negatives)} clean models"
    described = f"Area under the curve {roc.auc:.3f} [{low:.3f}, {high:.3f}], {counts}."
    steps = " ".join(f"L{100 * x:.3f} {100 * (1 - y):.3f}" for x, y in roc.points)
    curve = Markup("").join(
        [
            element("path", d="M0 100L100 0", class_="chance", vector_effect="non-scaling-stroke"),
            element("path", d=f"M0 100 {steps}", class_="curve", vector_effect="non-scaling-stroke"),
        ]
    )
    parts = [element("text", "true-positive rate", x="0", y=10, class_="tick")]
    for share in (0.0, 0.5, 1.0):
        parts += _level(_TOP + _HEIGHT * (1 - share), f"{share:g}")
        parts += _upright(share, f"{share:g}")
    axis = _TOP + _HEIGHT + 38
    parts.append(element("text", "false-positive rate", x="50%", y=axis, text_anchor="middle", class_="tick"))
    parts.append(
        element(
            "svg", curve, x="0", y=_TOP, width="100%", height=_HEIGHT, viewBox="0 0 100 100",
            preserveAspectRatio="none", overflow="visible",
        )
    )  # fmt: skip
    return chart(f"ROC of {roc.detector} at {roc.scheme}", described, _TOP + _HEIGHT + 46, parts)
