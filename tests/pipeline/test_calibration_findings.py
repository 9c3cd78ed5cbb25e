"""Calibration images that say little are told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.support import SHAPE, make_images
from torch import nn

from quantinel.data.copies import first_copies
from quantinel.data.images import ImageSet
from quantinel.defenses import Nearest
from quantinel.model.loading import LoadedModel, load_model
from quantinel.pipeline.calibration_findings import calibration_findings
from quantinel.pipeline.harden import HardenOptions, harden


@pytest.fixture(scope="module")
def model(odd_net: nn.Module) -> LoadedModel:
    return load_model(odd_net, input_shape=SHAPE)


def found(images: ImageSet, answers: list[int]) -> list[str]:
    return [finding.id for finding in calibration_findings(images, torch.tensor(answers))]


def test_ordinary_images_are_not_worth_a_word() -> None:
    assert found(make_images(32), [0, 1] * 16) == []
    assert found(make_images(4), [0] * 4) == []


def test_copies_and_single_classes_are() -> None:
    images = make_images(32)
    assert found(images.take(torch.zeros(32, dtype=torch.int64)), [0, 1] * 16) == ["calibration-copies"]
    assert found(images, [2] * 30 + [0, 1]) == ["calibration-classes"]


def test_first_copies_are_in_order() -> None:
    images = make_images(4).take(torch.tensor([1, 1, 0, 3, 0, 2]))
    assert first_copies(images.images).tolist() == [0, 2, 3, 5]


def test_a_report_counts_each_picture_once(model: LoadedModel, tmp_path: Path) -> None:
    """Regression: 256 copies of one picture gave an agreement of 100.00 % [98.52, 100.00]."""
    copies = make_images(1).take(torch.zeros(40, dtype=torch.int64))
    options = HardenOptions(rounding=Nearest())
    report = harden(model, make_images(40), tmp_path / "out", options, calibration=copies)
    findings = {finding.id: finding for finding in report.findings}
    assert findings["calibration-copies"].level == "warning"
    assert "1 of 40" in findings["calibration-copies"].detail
    assert report.verification.agreement.n == 1
