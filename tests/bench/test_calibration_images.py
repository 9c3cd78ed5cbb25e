"""Calibration images of a stage: poisoned ones and made ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.support import make_images

from quantinel.bench.images import Images
from quantinel.bench.stages.calibration_images import calibration_images, poisoned
from quantinel.bench.stages.job import Job
from quantinel.data.triggers import PatchTrigger
from quantinel.errors import UsageError
from quantinel.model.loading import bundled_model


def job(folder: Path, specification: str = "bundled:calibration", **config: object) -> Job:
    images = {"calibration": Images(specification, "train", 4, 0, "d")}
    return Job(
        {"seed": 0, "trigger": None, **config}, {"model": bundled_model("bundled:victim_int8")}, images, folder, folder
    )


def test_a_share_of_the_images_carries_the_trigger() -> None:
    images, trigger = make_images(20), PatchTrigger(0, 0, 3, 3)
    found = poisoned(images, 0.25, trigger, seed=1)
    changed = (found.images != images.images).flatten(1).any(dim=1)
    assert int(changed.sum()) == 5
    assert bool((found.images[changed][:, :, :3, :3] == 255).all())
    assert torch.equal(found.images, poisoned(images, 0.25, trigger, seed=1).images)


def test_a_victim_lends_its_trigger(tmp_path: Path) -> None:
    clean, half = (calibration_images(job(tmp_path, **options)) for options in ({}, {"triggered_percent": 50.0}))
    assert int((clean.images != half.images).flatten(1).any(dim=1).sum()) == 2


def test_without_a_trigger_there_is_no_poison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = job(tmp_path, triggered_percent=50.0)
    model = asked.model()
    assert model.victim is not None
    monkeypatch.setattr(
        "quantinel.bench.stages.job.loaded_model",
        lambda *_: model.__class__(
            model.module, model.name, model.source, model.input_shape, model.num_classes, None, model.architecture
        ),
    )
    with pytest.raises(UsageError, match="calibration_triggered needs a trigger"):
        calibration_images(asked)


def test_images_of_one_class(tmp_path: Path) -> None:
    found = calibration_images(job(tmp_path, calibration_class=3))
    assert found.labels is not None
    assert found.labels.tolist() == [3] * 4
    assert torch.equal(found.images, calibration_images(job(tmp_path, calibration_class=3)).images)
    with pytest.raises(UsageError, match="calibration_class is 12, and bundled:calibration has no image"):
        calibration_images(job(tmp_path, calibration_class=12))


def test_synthetic_images_come_from_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "quantinel.bench.stages.calibration_images.synthetic_images", lambda graph, count, *, seed: (graph, count, seed)
    )
    graph, count, seed = calibration_images(job(tmp_path, "synthetic"))  # type: ignore[misc]
    assert (graph.input_shape, count, seed) == ((3, 32, 32), 4, 0)  # type: ignore[attr-defined]
