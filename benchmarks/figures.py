"""Draw docs/images/defense-curves.svg from the committed rows of the suite `curves`.

    python benchmarks/figures.py

Accuracy and attack success of `reflect` against its budget; of `invariant` against the number of calibration images,
the share of them that carries the trigger, and its sweeps; of `efrap`, `qvec` and random flips against the share of
codes that they flip; of `efrap` against its sweeps. One line for each victim.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from quantinel.bench.images import SYNTHETIC
from quantinel.bench.row_file import read_rows
from quantinel.bench.rows import ResultRow
from quantinel.bench.suite import Suite
from quantinel.bench.suite_files import find_suite, load_suite
from quantinel.defenses import EFRAP, Invariant

ROOT = Path(__file__).parents[1]
FIGURE = ROOT / "docs" / "images" / "defense-curves.svg"
SUITE = "curves"
MARKERS = ("o", "s", "^", "D", "v", "P")

Position = Callable[[ResultRow, Suite], float | None]
"""Where a row lies on the horizontal axis; None where it is not part of the curve."""


def budget(row: ResultRow, _: Suite) -> float | None:
    """Of `reflect` on the bundled calibration images."""
    if row.defense != "reflect" or row.calibration != row.data:
        return None
    value = row.settings.get("defense", {}).get("budget", 0.005)
    assert isinstance(value, float)
    return value


def calibration_size(row: ResultRow, suite: Suite) -> float | None:
    """Images of the training split, for `invariant`; 0 are those made from the network."""
    if row.defense != "invariant":
        return None
    if suite.data[row.calibration].calibration == SYNTHETIC:
        return 0.0
    if not row.calibration.startswith("images-"):
        return None
    return suite.data[row.calibration].calibration_images or suite.run.calibration_images


def triggered_share(row: ResultRow, suite: Suite) -> float | None:
    """Percent of the bundled calibration images, for `invariant`."""
    own = row.calibration == row.data and row.defense_variant == "invariant"
    if row.defense != "invariant" or not (own or row.calibration.startswith("triggered-")):
        return None
    return suite.data[row.calibration].calibration_triggered or 0.0


def flip_share(method: str, row: ResultRow, _: Suite) -> float | None:
    """Percent of all codes that ``method`` moved away from nearest rounding."""
    if row.defense != method or row.calibration != row.data:
        return None
    if {"sweeps", "as_many_as"} & row.settings.get("defense", {}).keys():
        return None
    return float(row.extra["flips_percent"])


def sweeps(method: str, usual: int, row: ResultRow, _: Suite) -> float | None:
    """Of ``method`` with its other defaults, on the bundled calibration images."""
    given = row.settings.get("defense", {})
    if row.defense != method or set(given) - {"sweeps"} or row.calibration != row.data:
        return None
    return float(given.get("sweeps", usual))


EFRAP_SWEEPS = partial(sweeps, "efrap", EFRAP().sweeps)
LINEAR_BELOW = {budget: 0.001, calibration_size: 16.0}
"""Where a symmetric logarithmic axis begins to be one."""
CURVES: tuple[tuple[str, str, Position], ...] = (
    ("reflect: budget", "symlog", budget),
    ("invariant: calibration images (0: synthetic)", "symlog", calibration_size),
    ("invariant: triggered calibration images, %", "linear", triggered_share),
    ("invariant: sweeps", "log", partial(sweeps, "invariant", Invariant().sweeps)),
    ("efrap: flipped codes, % (flip weight 0 to 8)", "linear", partial(flip_share, "efrap")),
    ("qvec: flipped codes, %", "linear", partial(flip_share, "qvec")),
    ("random-flips: flipped codes, %", "linear", partial(flip_share, "random-flips")),
    ("efrap: sweeps", "log", EFRAP_SWEEPS),
)


def curve(axes: Axes, rows: list[ResultRow], suite: Suite, position: Position, figure: str) -> None:
    """One line for each model."""
    for model, marker in zip(dict.fromkeys(row.model for row in rows), MARKERS, strict=False):
        placed = [(position(row, suite), row) for row in rows if row.model == model]
        found = sorted((x, getattr(row, figure)) for x, row in placed if x is not None)
        axes.plot([x for x, _ in found], [y for _, y in found], marker=marker, markersize=3, linewidth=1, label=model)
    axes.grid(visible=True, linewidth=0.3)


def draw(rows: list[ResultRow], suite: Suite, path: Path) -> None:
    """Two bands of panels, in each of them accuracy above attack success."""
    mpl.rcParams.update({"svg.hashsalt": SUITE, "font.size": 7})
    wide = len(CURVES) // 2
    picture = Figure(figsize=(11, 8.4), layout="constrained")
    panels = picture.subplots(4, wide)
    for place, (title, scale, position) in enumerate(CURVES):
        band, column = divmod(place, wide)
        for line, (figure, name) in enumerate((("cda", "CDA, %"), ("asr", "ASR, %"))):
            axes = panels[2 * band + line, column]
            curve(axes, rows, suite, position, figure)
            axes.set_xscale(scale, **({"linthresh": LINEAR_BELOW[position]} if scale == "symlog" else {}))
            if column == 0:
                axes.set_ylabel(name)
            elif position is not EFRAP_SWEEPS:  # beside what flips alone do, nothing would be seen of it
                axes.sharey(panels[2 * band + line, 0])
        panels[2 * band + 1, column].set_xlabel(title)
    picture.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    path.parent.mkdir(exist_ok=True)
    picture.savefig(path, metadata={"Date": None})


def main() -> None:
    suite = load_suite(find_suite(SUITE, ROOT / "benchmarks" / "suites"))
    newest = {row.cell: row for row in read_rows(ROOT / "benchmarks" / "results" / f"{SUITE}.jsonl")}
    draw([row for row in newest.values() if row.status == "ok"], suite, FIGURE)


if __name__ == "__main__":
    main()
