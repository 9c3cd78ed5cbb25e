"""Render the pages of the site."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from quantinel.audit.report import Rate
from quantinel.bench.cells import NONE
from quantinel.bench.rows import ResultRow
from quantinel.bench.site import charts, summary
from quantinel.bench.site.curves import roc_curves, score_of
from quantinel.bench.site.entries import Entry, SuitePages
from quantinel.bench.site.evidence import Evidence
from quantinel.reports import pages, plots, wording

FIGURES = {"cda": "Accuracy", "asr": "Attack success", "ta": "Accuracy on triggered images"}
STATUS_WORDS = {"ok": "measured", "gate_failed": "gate failed", "failed": "failed", "not run": "not run"}
STATUS_MEANINGS = {
    "ok": "The cell has figures.",
    "gate_failed": "The attack made no victim; the figures are those of the failed attempt and count nowhere else.",
    "failed": "The cell has no figures; the error says why.",
    "not run": "The suite asks for this cell, and the results hold no row of it.",
}
_LOG_LIMIT = 60_000


def index_page(suites: Sequence[SuitePages]) -> str:
    """The entrance: what this is, and a card per suite."""
    return _environment().get_template("index.html.j2").render(suites=suites, root="", **_common())


def suite_page(suite: SuitePages) -> str:
    """The leaderboard of a suite."""
    by = charts.marks(summary.methods(suite))
    return (
        _environment()
        .get_template("suite.html.j2")
        .render(
            suite=suite, root="../", script=Markup(_own_template("site.js")), script_hash=_script_hash(), marks=by,
            lines=summary.by_method(suite), heat=summary.heat_map(suite), scatters=_scatters(suite, by),
            rocs=roc_curves(suite.scans), drawn=_drawn(suite), counted=_counted(suite), facets=_facets(suite),
            **_common(),
        )
    )  # fmt: skip


def cell_page(suite: SuitePages, entry: Entry, evidence: Evidence) -> str:
    """Everything known of one cell."""
    nearest, floating = suite.nearest_of(entry), suite.float_of(entry)
    return (
        _environment()
        .get_template("cell.html.j2")
        .render(
            suite=suite, entry=entry, row=entry.row, evidence=evidence, root="../../", by=nearest, floating=floating,
            panels=_panels(entry, nearest, floating), comparison=_comparison(entry), logs=_logs(evidence),
            others=suite.others_of(entry), **_common(),
        )
    )  # fmt: skip


def _common() -> dict[str, Any]:
    return {
        "style": _style(), "figures": FIGURES, "status_words": STATUS_WORDS, "status_meanings": STATUS_MEANINGS,
        "percent": percent, "number": number, "points": points, "score_of": score_of, "armed_for": summary.armed_for,
        "score": score, "column": summary.column,
    }  # fmt: skip


def percent(value: float | None) -> str:
    """A percentage for tables."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.2f}"


def points(value: float | None) -> str:
    """A difference in percentage points, with its sign."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:+.2f}".replace("-", "−") if round(value, 2) else "±0.00"


def score(value: float | None) -> str:
    """A detector's score."""
    return "–" if value is None else f"{value:.4f}"


def number(value: object) -> str:
    """A figure of ``extra``."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return wording.figure(float(value)).replace("-", "−")
    return str(value)


def _scatters(suite: SuitePages, by: dict[str, charts.Mark]) -> list[tuple[str, int, Markup]]:
    """(scheme, points, chart) of every grid; float models of its victims appear on each."""
    found = []
    compressed = [entry for entry in suite.figures if entry.kind != "float" and _has_both(entry)]
    for scheme in dict.fromkeys(summary.column(entry) for entry in compressed):
        here = [entry for entry in compressed if summary.column(entry) == scheme]
        floats = {base.id: base for entry in here if (base := suite.float_of(entry)) is not None and _has_both(base)}
        moves = [
            (base, entry)
            for entry in here
            if entry.kind == "hardened" and (base := suite.nearest_of(entry)) is not None and _has_both(base)
        ]
        shown = [*floats.values(), *here]
        found.append((scheme, len(shown), charts.scatter(f"Accuracy and attack success, {scheme}", shown, moves, by)))
    return found


def _drawn(suite: SuitePages) -> list[str]:
    """Methods that appear in the charts."""
    return summary.methods(suite, [entry for entry in suite.figures if _has_both(entry)])


def _has_both(entry: Entry) -> bool:
    row = entry.measured
    return row is not None and row.cda is not None and row.asr is not None


def _counted(suite: SuitePages) -> str:
    """How many images the figures rest on."""
    rows = [entry.row for entry in suite.figures if entry.row is not None]
    clean = sorted({row.n_clean for row in rows if row.n_clean})
    triggered = sorted({row.n_triggered for row in rows if row.n_triggered})
    if not clean:
        return ""
    told = f"n = {_either(clean)} clean"
    return f"{told} and {_either(triggered)} triggered images" if triggered else f"{told} images"


def _either(counts: list[int]) -> str:
    return f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"


def _facets(suite: SuitePages) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """(name in the address, label, (value, words)) of every filter with something to choose."""
    values: list[tuple[str, str, list[str]]] = [
        ("model", "Model", [entry.cell.model for entry in suite.entries]),
        ("attack", "Attack", [entry.cell.attack for entry in suite.entries]),
        ("scheme", "Scheme", [summary.column(entry) for entry in suite.entries]),
        ("method", "Defense or detector", [entry.method for entry in suite.entries]),
        ("seed", "Seed", [str(entry.cell.seed) for entry in suite.entries]),
        ("status", "Status", [entry.status for entry in suite.entries]),
        ("paper", "Against the paper", [entry.standing for entry in suite.entries if entry.standing != "-"]),
    ]
    facets = []
    for name, label, found in values:
        options = list(dict.fromkeys(found))
        if len(options) > 1 or name in ("status", "method"):
            words = STATUS_WORDS if name == "status" else {}
            facets.append((name, label, [(value, words.get(value, value)) for value in options]))
    return facets


def _rate(row: ResultRow | None, name: str) -> Rate | None:
    """A figure of a row as the charts of reports take it."""
    if row is None:
        return None
    value, interval = getattr(row, name), getattr(row, f"{name}_interval")
    n = row.n_triggered if name == "asr" else row.n_clean
    if value is None or interval is None:
        return None
    return Rate(percent=value, interval95=interval, hits=round(value * n / 100), n=n)


def _panels(entry: Entry, nearest: Entry | None, floating: Entry | None) -> list[tuple[str, str, Markup]]:
    """(title, what is better, bars) of float, nearest and this cell."""
    variants = [(item, kind) for item, kind in ((floating, "float"), (nearest, "nearest")) if item is not None]
    shown = [(item.row, item.method, kind) for item, kind in variants if item.id != entry.id]
    shown.append((entry.row, entry.method, entry.kind))
    panels = []
    for name, better in (("asr", "lower is better"), ("cda", "higher is better")):
        if _rate(entry.row, name) is None:
            continue
        bars = [
            plots.Bar(method, wording.BACKENDS.get(row.backend, row.backend) if row else "", _rate(row, name), kind)
            for row, method, kind in shown
        ]
        panels.append((FIGURES[name], better, plots.rate_bars(f"{FIGURES[name]}, percent with 95 % intervals", bars)))
    return panels


def _comparison(entry: Entry) -> list[tuple[str, float, float | None, bool | None]]:
    """(figure, published, ours, within the tolerance) of every published figure."""
    tolerance = None if entry.published is None else entry.published.tolerance
    found = []
    for name, value in entry.paper.items():
        ours = getattr(entry.row, name, None) if entry.row is not None else None
        near = None if ours is None or tolerance is None else abs(ours - value) <= tolerance
        found.append((name, value, ours, near))
    return found


def _logs(evidence: Evidence) -> list[tuple[str, str, bool]]:
    """(stage, text, whether it was cut): the end of a very long log says more than its beginning."""
    return [(stage, text[-_LOG_LIMIT:], len(text) > _LOG_LIMIT) for stage, text in evidence.logs]


def _flips(value: object) -> str:
    """A percentage of ``extra``."""
    return wording.percent(float(value)) if isinstance(value, int | float) else "–"


def _share(value: object) -> str:
    """A share in [0, 1] from a JSON file."""
    return wording.share(float(value)) if isinstance(value, int | float) else "–"


def _own_template(name: str) -> str:
    return resources.files("quantinel.bench.site").joinpath("templates", name).read_text("utf-8")


def _template(name: str) -> str:
    """Templates of the site, and the macros of the reports."""
    return _own_template(name) if name != "macros.html.j2" else pages.template(name)


@cache
def _style() -> Markup:
    return pages.style(_own_template("site.css"))


@cache
def _script_hash() -> str:
    """What the content security policy lets run: this script and no other."""
    text = f"\n{_own_template('site.js')}\n"
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


@cache
def _environment() -> Environment:
    return pages.environment(_template, none_name=NONE, roc_chart=charts.roc_chart, share=_share, flips=_flips)
