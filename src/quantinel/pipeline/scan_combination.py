"""The combined check of a scan, from what its parts found."""

from __future__ import annotations

from quantinel.audit.combination import PARTS, combination
from quantinel.audit.judging import Circumstances, Place, judge
from quantinel.audit.rules import COMBINED
from quantinel.audit.scan_report import ScanCheck
from quantinel.audit.thresholds import Thresholds
from quantinel.detectors import Subject
from quantinel.errors import NotAssessable
from quantinel.pipeline.scan_checks import Outcome

_TITLE = "The signs of rounding errors, taken together, do not matter"


def combination_place(scheme: str) -> Place:
    """Where the check of a scheme stands."""
    return Place(COMBINED, _TITLE, scheme, True)


def combined_check(scheme: str, subject: Subject, outcome: Outcome, thresholds: Thresholds) -> ScanCheck:
    """Judge the parts together; where one is missing, the check did not run.

    Args:
        scheme: name of the subject's scheme.
        subject: what the parts ran on.
        outcome: of the detectors.
        thresholds: to judge by.
    """
    place = combination_place(scheme)
    parts = {name: f"{scheme}/{name}" for name in PARTS}
    evidence = {name: outcome.evidence[identity] for name, identity in parts.items() if identity in outcome.evidence}
    try:
        found = combination(evidence)
    except NotAssessable as error:
        missing = (check.reason for check in outcome.checks if check.id in parts.values() and check.status == "not_run")
        return place.check("not_run", reason="; ".join(dict.fromkeys((str(error), *missing))))
    images = subject.required_images()
    given = Circumstances(
        weight_bits=subject.scheme.weight_bits,
        images=len(images),
        cut_short=not outcome.cut_short.isdisjoint(parts.values()),
        class_names=images.class_names,
    )
    return judge(place, found, thresholds, given)
