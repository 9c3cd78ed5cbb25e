"""What a scan without images says about the input of `harden`: the same detectors, rules and thresholds."""

from __future__ import annotations

from typing import Literal

from quantinel.audit.report import Finding
from quantinel.audit.rules import NOT_ASSESSABLE, Level
from quantinel.audit.scan_verdict import findings_of
from quantinel.audit.thresholds import load_thresholds
from quantinel.detectors import DETECTORS, Subject
from quantinel.pipeline.scan_checks import plan, run_checks

_CROWDING = "QCB003"
_LEVELS: dict[Level, Literal["info", "warning", "error"]] = {"note": "info", "warning": "warning", "error": "error"}


def input_findings(subject: Subject) -> list[Finding]:
    """Findings of the data-free detectors about the float model.

    Args:
        subject: the folded float network and its deployment grid; images play no part.
    """
    scheme, crowding = subject.scheme.name, subject.crowding
    tasks = [
        task for task in plan({scheme: subject}, {})
        if task.place.detector in DETECTORS and DETECTORS[task.place.detector].needs == "weights"
    ]  # fmt: skip
    noticed = [
        finding for finding in findings_of(run_checks(tasks, load_thresholds()).checks)
        if finding.rule != NOT_ASSESSABLE
    ]  # fmt: skip
    figures = (
        f"{100 * crowding.edge_share:.1f} % of {crowding.weights} weights lie within 0.005 steps of a rounding "
        f"boundary of {scheme}; {100 * crowding.placebo_edge_share:.1f} % on grids that are 7 % off"
    )
    found = [
        Finding(
            id=finding.rule,
            title=finding.title,
            level=_LEVELS[finding.level],
            detail=finding.detail + (f"; {figures}" if finding.rule == _CROWDING else ""),
        )
        for finding in noticed
    ]
    if any(finding.rule == _CROWDING for finding in noticed):
        return found
    title = "Weights do not crowd at rounding boundaries"
    evasion = "an attacker who knows the checks of weights can avoid them; `quantinel scan` also looks at behaviour"
    return [*found, Finding(id=_CROWDING, title=title, level="info", detail=f"{figures}; {evasion}")]
