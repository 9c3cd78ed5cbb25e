"""Stages that keep no checkpoint can be stopped while they run."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from tests.support import make_images

from quantinel.bench.stages import evaluate
from quantinel.bench.stages.job import Job
from quantinel.defenses import EFRAP
from quantinel.errors import Interrupted
from quantinel.model.graph import FloatGraph
from quantinel.quantization.calibration import calibrate
from quantinel.quantization.reconstruction import choose_codes
from quantinel.quantization.scheme import parse_scheme


def job(folder: Path, polls: int) -> Job:
    """It is asked to stop after this many looks."""
    looks = itertools.count()
    return Job({}, {}, {}, folder, folder, should_stop=lambda: next(looks) >= polls)


def test_an_evaluation_stops_between_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "_AT_A_TIME", 4)
    seen: list[int] = []

    def predict(images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        return images.flatten(1).float()[:, :3]

    images = make_images(10).images
    whole = evaluate._watched(job(tmp_path, 10), predict)(images)
    assert torch.equal(whole, predict(images))
    assert seen == [4, 4, 2, 10]
    seen.clear()
    with pytest.raises(Interrupted):
        evaluate._watched(job(tmp_path, 2), predict)(images)
    assert seen == [4, 4]


def test_a_defense_stops_between_layers(tmp_path: Path, odd_graph: FloatGraph) -> None:
    ranges = calibrate(odd_graph, make_images(8), parse_scheme("int8"))
    with pytest.raises(Interrupted):
        choose_codes(odd_graph, ranges, EFRAP(), progress=job(tmp_path, 3).report)
    choose_codes(odd_graph, ranges, EFRAP(), progress=job(tmp_path, 100).report)
