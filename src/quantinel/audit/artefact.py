"""The shipped file against the float model that it is said to come from: the built-in check of ``--artefact``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from quantinel.audit.judging import Place
from quantinel.audit.scan_report import CheckStatus, LayerScore, ScanCheck
from quantinel.errors import NotAssessable
from quantinel.model.graph import FloatGraph

_SHOWN = 8


@dataclass(frozen=True)
class LayerDifference:
    """One layer of the file: name in the float model, and share of weights that are not rounded to nearest."""

    name: str
    other: float


@dataclass(frozen=True)
class ArtefactFinding:
    """Something about the file: "error" is what no quantizer does, "warning" what needs an explanation."""

    id: str
    level: Literal["info", "warning", "error"]
    layer: str | None
    detail: str


@dataclass(frozen=True)
class ArtefactComparison:
    """What the comparison of a shipped file showed.

    Attributes:
        layers: compared.
        findings: errors first.
        not_assessed: what could not be compared.
        other: share of all compared weights that are not rounded to nearest.
    """

    layers: tuple[LayerDifference, ...]
    findings: tuple[ArtefactFinding, ...]
    not_assessed: tuple[str, ...]
    other: float


def compare_artefact(graph: FloatGraph, path: Path) -> ArtefactComparison:
    """Compare the integers, scales, biases and operators of a quantized file with the float model.

    Raises:
        NotAssessable: the file is of a kind that is not compared.
    """
    del graph
    raise NotAssessable(f"comparing {path.name} with the float model is not part of this version")


def artefact_check(place: Place, found: ArtefactComparison, seconds: float) -> ScanCheck:
    """Fails on everything that rounding to nearest does not explain; undecided where parts could not be compared.

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
        reason=unseen if status == "undecided" else "",
        detail="; ".join([*shown, *([f"and {more} more"] if more > 0 else [])]),
        statistics={"layers compared": len(found.layers), "share of integers that are not nearest": found.other},
        by_layer=[LayerScore(name=layer.name, score=layer.other) for layer in found.layers],
        notes=[unseen] if unseen and status == "fail" else [],
        seconds=round(seconds, 3),
    )
