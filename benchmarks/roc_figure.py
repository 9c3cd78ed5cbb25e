"""Draw docs/images/scan-roc.svg from committed rows: ROC curves of what a verdict rests on.

    python -m benchmarks.roc_figure

Victims and harmless models that played no part in making or fitting the detectors, on both grids; for the three
detectors of rounding signs and their combination. A cross marks the threshold that ships.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from benchmarks.tables.lines import ROOT
from benchmarks.tables.verdicts import JUDGED, NEW, NEW_ADAPTIVE, scanned
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from quantinel.audit.combination import PARTS
from quantinel.audit.rules import COMBINED
from quantinel.audit.thresholds import Thresholds, load_thresholds

FIGURE = ROOT / "docs" / "images" / "scan-roc.svg"
GRIDS = {"int8": 8, "int4": 4}
CHECKS = (*PARTS, COMBINED)

Scores = dict[tuple[str, str, bool], list[float]]
"""p-values by grid, check and whether the model is a victim."""


def p_values(thresholds: Thresholds) -> Scores:
    """Of models outside of the development."""
    found: Scores = {}
    for (_, _, scheme, _), (group, rows) in scanned(thresholds).items():
        if scheme in GRIDS and group in (NEW, NEW_ADAPTIVE, JUDGED):
            for check in CHECKS:
                found.setdefault((scheme, check, group != JUDGED), []).append(float(rows[check].extra["p_value"]))
    return found


def shares(victims: Sequence[float], harmless: Sequence[float], limit: float) -> tuple[float, float]:
    """False-positive and true-positive rate, in percent, where p-values of ``limit`` or less fail."""
    return tuple(100.0 * sum(p <= limit for p in part) / len(part) for part in (harmless, victims))  # type: ignore[return-value]


def panel(axes: Axes, found: Scores, grid: str, thresholds: Thresholds) -> None:
    """The curves of one grid."""
    for check in CHECKS:
        victims, harmless = found[grid, check, True], found[grid, check, False]
        limits = (0.0, *sorted({*victims, *harmless}))
        points = [shares(victims, harmless, limit) for limit in limits]
        (line,) = axes.step(*zip(*points, strict=True), where="post", linewidth=1.2, label=check)
        entry = thresholds.find(check, GRIDS[grid])
        if entry is not None:
            axes.plot(*shares(victims, harmless, entry.threshold), marker="x", color=line.get_color(), markersize=6)
    axes.set_title(f"{grid}: {len(victims)} victims, {len(harmless)} harmless models", fontsize=8)
    axes.set_xlabel("harmless models that fail, %")
    axes.set_xlim(-1, 60)
    axes.set_ylim(0, 102)
    axes.grid(visible=True, linewidth=0.3)


def draw(path: Path) -> None:
    """A panel for each grid."""
    mpl.rcParams.update({"svg.hashsalt": "scan", "font.size": 7})
    picture = Figure(figsize=(7.5, 3.2), layout="constrained")
    panels = picture.subplots(1, len(GRIDS), sharey=True)
    thresholds = load_thresholds()
    found = p_values(thresholds)
    for axes, grid in zip(panels, GRIDS, strict=True):
        panel(axes, found, grid, thresholds)
    panels[0].set_ylabel("victims that fail, %")
    picture.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    picture.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    draw(FIGURE)
