"""Detectors that find what a test wants, in place of all others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pytest
import torch

from quantinel.audit.rules import COMBINED, on_grid
from quantinel.audit.thresholds import Threshold, Thresholds
from quantinel.detectors import DETECTORS, Detection, Detector, Subject
from quantinel.metrics import Proportion

Answer = Detection | Exception | Callable[[Subject], Detection]


@dataclass(frozen=True)
class NoOptions:
    """A fake has none."""


def fake(name: str, answer: Answer, needs: str = "images") -> Detector:
    """A detector that returns, raises or calls ``answer``."""

    def run(subject: Subject, options: object) -> Detection:
        del options
        if isinstance(answer, Exception):
            raise answer
        return answer(subject) if callable(answer) else answer

    return Detector(name, f"fake {name}; for tests", needs, NoOptions, run)  # type: ignore[arg-type]


def install(monkeypatch: pytest.MonkeyPatch, answers: Mapping[str, Answer], weights: tuple[str, ...] = ()) -> None:
    """Make these the only detectors; those of ``weights`` need no images."""
    for name in list(DETECTORS):
        monkeypatch.delitem(DETECTORS, name)
    for name, answer in answers.items():
        monkeypatch.setitem(DETECTORS, name, fake(name, answer, "weights" if name in weights else "images"))


def calibrated(*detectors: str, limit: float = 0.5) -> Thresholds:
    """Thresholds on the scores of these detectors, for all bits; with any, one on the p-value of their combination."""
    limits = [(name, "score", limit) for name in detectors] + [(COMBINED, "p_value", 0.005)] * bool(detectors)
    entries = [
        Threshold.model_validate({
            "detector": name, "statistic": statistic, "weight_bits": (2, 8) if on_grid(name) else None,
            "threshold": threshold,
            "false_positives": Proportion(0, 60).to_dict(), "fitted_on": ["clean"], "fitted_models": 40,
            "judged_on": ["pruned"], "images": 0,
        })
        for name, statistic, threshold in limits
    ]  # fmt: skip
    return Thresholds(alpha=0.01, suite="made", rows_sha256="", commit="", created="", command="", entries=entries)


def with_trigger(size: int, target: int = 2) -> Detection:
    """A detection whose trigger is a white square in the corner of (3, size, size) images."""
    mask = torch.zeros(size, size)
    mask[:3, :3] = 1.0
    return Detection(
        0.9, suspect_class=target, by_class={0: 0.1, target: 0.9}, by_layer={"stem": 0.4},
        tensors={"mask": mask, "pattern": torch.ones(3, size, size)},
    )  # fmt: skip
