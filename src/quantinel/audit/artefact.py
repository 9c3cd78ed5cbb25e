"""The shipped file against the float model that it is said to come from: the built-in check of ``--artefact``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from quantinel.audit.judging import Place
from quantinel.audit.scan_report import LayerScore, ScanCheck
from quantinel.errors import NotAssessable
from quantinel.model.graph import FloatGraph


@dataclass(frozen=True)
class ArtefactComparison:
    """What the comparison of a shipped file showed.

    Attributes:
        problems: what does not follow from the float model by rounding; empty where all does.
        unmatched: what could not be compared.
        statistics: figures by name, such as the share of integers that are not the nearest.
        by_layer: that share by layer.
    """

    problems: tuple[str, ...]
    unmatched: tuple[str, ...] = ()
    statistics: Mapping[str, float] = field(default_factory=dict)
    by_layer: Mapping[str, float] = field(default_factory=dict)


def compare_artefact(graph: FloatGraph, path: Path) -> ArtefactComparison:
    """Compare the integers, scales, biases and operators of a quantized file with the float model.

    Raises:
        NotAssessable: the file is of a kind that is not compared.
    """
    del graph
    raise NotAssessable(f"comparing {path} with the float model is not part of this version")


def artefact_check(place: Place, found: ArtefactComparison, seconds: float) -> ScanCheck:
    """Fails on any problem; undecided where parts of the file could not be compared."""
    status = "fail" if found.problems else "undecided" if found.unmatched else "pass"
    told = "; ".join(found.problems) or "every compared integer, scale, bias and operator follows from the float model"
    return place.check(
        status,  # type: ignore[arg-type]
        judged_by="bound",
        statistic="problems",
        value=float(len(found.problems)),
        threshold=0.0,
        reason=f"could not be compared: {'; '.join(found.unmatched)}" if status == "undecided" else "",
        detail=told,
        statistics=dict(found.statistics),
        by_layer=[LayerScore(name=name, score=score) for name, score in found.by_layer.items()],
        seconds=round(seconds, 3),
    )
