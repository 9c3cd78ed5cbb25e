"""The shipped file against the float model that it is said to come from: the built-in check of ``--artefact``."""

from __future__ import annotations

from quantinel.audit.judging import Place
from quantinel.audit.scan_report import CheckStatus, LayerScore, ScanCheck
from quantinel.backends.artefact_comparison import ArtefactComparison

_SHOWN = 8


def artefact_check(place: Place, found: ArtefactComparison, seconds: float) -> ScanCheck:
    """Fails on everything that rounding to nearest does not explain; undecided where parts could not be compared.

    Those parts are named beside a failure too, so that whoever accepts what failed does not accept them with it.

    Rounding that was chosen on purpose (AdaRound, EFRAP, QuRA) cannot be told from an attack by looking at the
    integers. Whoever knows the quantizer accepts the finding with a statement.
    """
    unexplained = [finding for finding in found.findings if finding.level != "info"]
    status: CheckStatus = "fail" if unexplained else "undecided" if found.not_assessed else "pass"
    shown = [finding.detail for finding in (unexplained or found.findings)[:_SHOWN]]
    more = len(unexplained) - _SHOWN
    unseen = f"could not be compared: {'; '.join(found.not_assessed[:_SHOWN])}" if found.not_assessed else ""
    return place.check(
        status,
        judged_by="bound",
        statistic="unexplained differences",
        value=float(len(unexplained)),
        threshold=0.0,
        reason=unseen,
        detail="; ".join([*shown, *([f"and {more} more"] if more > 0 else [])]),
        statistics={"layers compared": len(found.layers), "share of integers that are not nearest": found.other},
        by_layer=[LayerScore(name=layer.name, score=layer.other) for layer in found.layers],
        seconds=round(seconds, 3),
    )
