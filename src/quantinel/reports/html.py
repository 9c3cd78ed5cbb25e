"""The report as one HTML page that stands alone: no script, no font, no picture from anywhere else.

Names in a report come from files that nobody vouches for. Everything is escaped by Jinja2, control characters
are spelled out, pictures must be PNG in base64, and a content security policy forbids the page to load anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from quantinel.audit.report import EvaluationRow, Rate, Report
from quantinel.reports import facts, pages, plots, wording

_LAYERS_SHOWN = 40
_LAYERS_FIRST = 10
_EXAMPLES_SHOWN = 12


def render_html(report: Report) -> str:
    """Render ``report.html``."""
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            style=pages.style(pages.template("report.css")),
            request={key: value for key, value in report.request.items() if key != "command"},
            trigger=_trigger(report),
            panels=_panels(report),
            overview=facts.layer_overview(report.layers),
            counts=facts.count_checks(report.checks),
            layers_shown=_LAYERS_SHOWN,
            first_layers=facts.layers_to_see_first(report.layers, _LAYERS_FIRST),
            examples=report.examples[:_EXAMPLES_SHOWN],
        )
    )


@dataclass(frozen=True)
class Panel:
    """One chart of the comparison; ``missing`` says why there is none."""

    title: str
    better: str
    rows: list[tuple[EvaluationRow, Rate | None]]
    missing: str

    @property
    def chart(self) -> Markup:
        """Bars of all variants."""
        bars = [
            plots.Bar(wording.VARIANTS[row.variant], wording.BACKENDS[row.backend], rate, row.variant)
            for row, rate in self.rows
        ]
        return plots.rate_bars(f"{self.title}, percent with 95 % intervals", bars)

    @property
    def n(self) -> str:
        """How many images each bar rests on."""
        counts = sorted({rate.n for _, rate in self.rows if rate is not None})
        return " or ".join(f"{count:,}" for count in counts)


def _panels(report: Report) -> list[Panel]:
    rows = report.evaluation
    success = Panel(
        "Attack success",
        "share of triggered images answered with the attacker's class; lower is better",
        [(row, row.asr) for row in rows],
        "Attack success was not measured: "
        + ("no trigger was given." if report.trigger is None else "no image was left to measure it on."),
    )
    accuracy = Panel(
        "Accuracy",
        "share of clean images answered correctly; higher is better",
        [(row, row.cda) for row in rows],
        "Accuracy was not measured: the images have no labels, or none were left for evaluation.",
    )
    if all(row.cda is None for row in rows) and any(row.agreement is not None for row in rows):
        accuracy = Panel(
            "Agreement with the float model",
            "share of clean images answered as before quantization; stands in for accuracy, which needs labels",
            [(row, row.agreement) for row in rows],
            "",
        )
    return [success, accuracy]


def _trigger(report: Report) -> dict[str, Any]:
    """The trigger with the name of its class in place of the number."""
    target = facts.target_name(report)
    return (report.trigger or {}) | ({} if target is None else {"target_class": target})


@cache
def _environment() -> Environment:
    return pages.environment()
