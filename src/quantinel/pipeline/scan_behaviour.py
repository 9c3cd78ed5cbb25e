"""What ordinary compression does to the answers on the user's images."""

from __future__ import annotations

import time
from collections.abc import Sequence

from quantinel.audit.behaviour import Answers, behaviour_check
from quantinel.audit.judging import Place, class_name
from quantinel.audit.rules import BEHAVIOUR
from quantinel.audit.scan_report import ClassShare, ScanCheck, SchemeResult
from quantinel.backends.verification import simulated_logits
from quantinel.data.copies import different
from quantinel.detectors import Residuals, Subject
from quantinel.pipeline.identity import histogram
from quantinel.pipeline.measure import rate

_TITLE = "On clean images the compressed model answers as the float model does"


def place_of(scheme: str) -> Place:
    """Where the check of a scheme stands."""
    return Place(BEHAVIOUR, _TITLE, scheme, True)


def measure_behaviour(scheme: str, subject: Subject) -> tuple[ScanCheck, Answers | None]:
    """Answers of the float model and of its nearest rounding; without images the check did not run.

    Args:
        scheme: name of the subject's scheme.
        subject: the model with its images.
    """
    if subject.images is None:
        reason = "it needs images of the model's own kind; give --data"
        return place_of(scheme).check("not_run", reason=reason), None
    started = time.perf_counter()
    compressed = simulated_logits(subject.nearest.simulate(), subject.images.images)
    answers = Answers(
        floating=subject.float_logits.argmax(1),
        compressed=compressed.argmax(1),
        num_classes=subject.graph.num_classes,
        different=different(subject.images.images),
        labels=subject.images.labels,
    )
    names = subject.images.class_names
    seconds = time.perf_counter() - started
    return behaviour_check(place_of(scheme), answers, subject.scheme, names, seconds), answers


def scheme_result(
    scheme: str, answers: Answers | None, residuals: Residuals, names: Sequence[str] | None
) -> SchemeResult:
    """The figures of one scheme, for the report."""
    shares = [] if answers is None else list(
        zip(answers.shares(answers.floating), answers.shares(answers.compressed), strict=True)
    )  # fmt: skip
    return SchemeResult(
        scheme=scheme,
        agreement=None if answers is None else rate(answers.agreement),
        float_cda=None if answers is None else rate(answers.cda(answers.floating)),
        compressed_cda=None if answers is None else rate(answers.cda(answers.compressed)),
        classes=[
            ClassShare(index=index, name=class_name(index, names), floating=before, compressed=after)
            for index, (before, after) in enumerate(shares)
        ],
        residuals=histogram(residuals),
    )
