"""Run the detectors of a scan, data-free ones first, within the time that was given."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from quantinel.audit.judging import Circumstances, Place, judge
from quantinel.audit.rules import BUILT_IN, RULES, When, rule_of
from quantinel.audit.scan_report import ScanCheck
from quantinel.audit.thresholds import Thresholds
from quantinel.detectors import DETECTORS, Detection, Subject
from quantinel.errors import InputError, NotAssessable, UnsupportedError, UsageError
from quantinel.quantization.calibration import Progress

FLOAT = "float"
"""Target of detectors that look at the float model only."""
_NOT_INSTALLED = "this version of Quantinel has no such detector"
_LEFT_OUT = "it was left out by --detectors"
_NO_IMAGES = "it needs images of the model's own kind; give --data"
_NO_TIME = "the time budget was used up before its turn; give a longer --budget"


@dataclass(frozen=True)
class Task:
    """One check by a detector.

    Attributes:
        place: of the check in the scan.
        subject: the model, the grid or pruning, and the images.
        prunings: how many checks by this detector share its false-positive rate: one for each pruning of the scan.
    """

    place: Place
    subject: Subject
    prunings: int = 1


@dataclass
class Outcome:
    """What running the detectors gave.

    Attributes:
        checks: one per task.
        evidence: what the detectors returned, by id of the check; absent where one did not run.
        cost: what was cut short or left out for want of time.
        cut_short: ids of the checks that did less than they wanted.
    """

    checks: list[ScanCheck] = field(default_factory=list)
    evidence: dict[str, Detection] = field(default_factory=dict)
    cost: list[str] = field(default_factory=list)
    cut_short: set[str] = field(default_factory=set)


def check_names(names: Sequence[str] | None) -> None:
    """Refuse names that are not registered.

    Raises:
        UsageError: one is unknown.
    """
    for name in names or ():
        if name not in DETECTORS:
            raise UsageError(f"unknown detector {name!r}; choose from {', '.join(DETECTORS)}")


def places(targets: Mapping[When, Sequence[str]]) -> list[Place]:
    """Where all checks by detectors stand, in the order in which they run.

    Data-free detectors come before those that read images, whatever the target, so that little time is spent on what
    is cheap first. What a rule requires and nobody registered has its place as well, so that it is missed.

    Args:
        targets: names of schemes ("always"), of pruning schemes ("pruning") and of what was asked for by name.
    """
    order = sorted(DETECTORS.values(), key=lambda detector: detector.needs == "images")
    named = [(detector.name, detector.summary.split(";")[0]) for detector in order]
    known = BUILT_IN.union(DETECTORS)
    needed = [name for rule in RULES.values() for name in rule.required]
    named += [(name, name) for name in needed if name not in known]
    found = [
        Place(name, title[:1].upper() + title[1:], target, name in rule_of(name).required)
        for name, title in named
        for target in targets.get(rule_of(name).when, ())
    ]
    return [place for place in found if place.required or place.detector in DETECTORS]


def plan(
    schemes: Mapping[str, Subject], prunings: Mapping[str, Subject], only: Sequence[str] | None = None
) -> list[Task]:
    """All checks by detectors, in the order in which they run.

    Args:
        schemes: subjects by the name of their grid; the first stands for the float model.
        prunings: subjects by the name of their pruning scheme; empty where none was asked for.
        only: names of detectors; None for all but those that must be asked for.
    """
    asked = any(rule_of(name).when == "asked" for name in only or ())
    floating = {FLOAT: next(iter(schemes.values()))} if asked else {}
    subjects = {**schemes, **prunings, **floating}
    targets: dict[When, list[str]] = {"always": [*schemes], "pruning": [*prunings], "asked": [*floating]}
    return [
        Task(place, subjects[place.target], len(prunings) if place.target in prunings else 1)
        for place in places(targets)
    ]


def run_checks(
    tasks: Sequence[Task],
    thresholds: Thresholds,
    only: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Run every task; what cannot run says why.

    Each task may use an equal share of the time that is left, so what one does not need goes to those after it.

    Args:
        tasks: of `plan`.
        thresholds: to judge by.
        only: names of detectors; None for all.
        progress: called before every check.
    """
    outcome = Outcome()
    for index, task in enumerate(tasks):
        if progress is not None:
            progress(f"checking {task.place.id}", index, len(tasks))
        _run(task, thresholds, only, len(tasks) - index, outcome)
    if progress is not None and tasks:
        progress(f"checking {tasks[-1].place.id}", len(tasks), len(tasks))
    return outcome


def _run(task: Task, thresholds: Thresholds, only: Sequence[str] | None, left: int, outcome: Outcome) -> None:
    place, subject = task.place, task.subject
    detector = DETECTORS.get(place.detector)
    reason = None
    if detector is None:
        reason = _NOT_INSTALLED
    elif only is not None and place.detector not in only:
        reason = _LEFT_OUT
    elif detector.needs == "images" and subject.images is None:
        reason = _NO_IMAGES
    elif not subject.budget.remaining():
        reason = _NO_TIME
        outcome.cost.append(f"{place.id} did not run: no power at all")
    if reason is not None or detector is None:
        outcome.checks.append(place.check("not_run", reason=reason))
        return
    started = time.perf_counter()
    own = subject.within(subject.budget.share(left))
    try:
        found = detector.run(own, detector.config())
    except (NotAssessable, InputError, UnsupportedError) as error:
        seconds = round(time.perf_counter() - started, 3)
        outcome.checks.append(place.check("not_run", reason=str(error), seconds=seconds))
        return
    finally:
        subject.keep(own)
    # data-free detectors never do less for want of time: their notes are about layers
    limited = math.isfinite(subject.budget.seconds) and detector.needs == "images"
    if limited and found.notes:
        outcome.cost += [f"{place.id}: {note}" for note in found.notes]
        outcome.cut_short.add(place.id)
    given = Circumstances(
        weight_bits=subject.scheme.weight_bits,
        images=0 if subject.images is None or detector.needs != "images" else len(subject.images),
        cut_short=place.id in outcome.cut_short,
        class_names=None if subject.images is None else subject.images.class_names,
        seconds=time.perf_counter() - started,
        prunings=task.prunings,
    )
    outcome.evidence[place.id] = found
    outcome.checks.append(judge(place, found, thresholds, given))
