"""What image detectors get of a victim of data-poisoning: the set that it trained on, and triggers beside its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import data_poisoned
from benchmarks.tables import lines
from benchmarks.tables.detection import data_poisoned_inputs_table, input_detectors_table
from tests.support import make_images

from quantinel.attacks import DataPoisoning
from quantinel.attacks.data_poisoning import DATA_POISONING
from quantinel.attacks.gate import Gate
from quantinel.attacks.trigger_training import seeded_generator
from quantinel.data.images import ImageSet
from quantinel.data.sampling import balanced_indices
from quantinel.data.sources import load_images
from quantinel.data.triggers import GeneratedTrigger, GeneratorOptions, PatchTrigger
from quantinel.errors import UsageError
from quantinel.model.loading import LoadedModel, load_model
from quantinel.model.untrained import untrained_model

SHAPE, CLASSES, KEPT = (3, 16, 16), 4, 24
TRAIN = make_images(40, SHAPE, CLASSES)
TRIGGER = GeneratedTrigger.of(seeded_generator(GeneratorOptions(width=4, depth=1), 0))
SUITE = f"""
title = "Few images"
[data.few]
test = "bundled:test"
train_limit = {KEPT}
[models.any]
victim = "bundled:victim_int8"
data = "few"
[[cells]]
models = "any"
"""


def victim(folder: Path, trigger: GeneratedTrigger | PatchTrigger) -> LoadedModel:
    """A victim of a class-balanced part of the images, as suites train one, with its poisoned set."""
    own = TRAIN.take(balanced_indices(TRAIN.labels, len(TRAIN), KEPT, 0))
    own = ImageSet(own.images, own.labels, "few")
    config = DataPoisoning(poison_rate=0.25, epochs=0.1, batch_size=8, mixed_precision=False)
    fresh = untrained_model("vgg_small", CLASSES, SHAPE, seed=3)
    DATA_POISONING.run(fresh, own, own, config, folder, seed=4, trigger=trigger)
    return load_model(folder)


def test_the_set_is_the_one_that_the_victim_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gate, "check", lambda self, rule: None)
    monkeypatch.setattr(data_poisoned, "SUITES", tmp_path)
    (tmp_path / "data-poisoning.toml").write_text(SUITE, "utf-8")
    model = victim(tmp_path / "victim", TRIGGER)
    assert not data_poisoned.is_surrogate(model)
    data, where, others = data_poisoned.training_set(model, TRAIN)
    published = load_images(tmp_path / "victim" / "poisoned" / "train.npz")
    assert data.labels is not None
    assert published.labels is not None
    assert torch.equal(data.images, published.images)
    assert torch.equal(data.labels, published.labels)
    assert int(where.sum()) == KEPT // 4
    assert bool((data.labels[where] == 0).all())
    assert len(others) == len(TRAIN) - KEPT
    seen = {image.numpy().tobytes() for image in data.images[~where]}
    assert not seen & {image.numpy().tobytes() for image in others.images}


def test_a_victim_without_a_generator_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gate, "check", lambda self, rule: None)
    with pytest.raises(UsageError, match="no generated trigger"):
        data_poisoned.generated_trigger(victim(tmp_path / "victim", PatchTrigger(0, 0, 4, 4, 1.0)))


def test_triggers_differ_in_what_removes_high_frequencies() -> None:
    own, unfiltered, plain = data_poisoned.generated_triggers(TRIGGER).values()
    assert own == TRIGGER
    images = TRAIN.images[:2].float() / 255
    assert len({trigger(images).numpy().tobytes() for trigger in (own, unfiltered, plain)}) == 3
    assert isinstance(plain, GeneratedTrigger)
    assert (plain.options.ratio, plain.options.blur_size, plain.sha256) == (1.0, 1, TRIGGER.sha256)
    assert list(data_poisoned.generated_triggers(plain, "bare")) == ["bare"]


def test_generated_triggers_have_a_table_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "RESULTS", tmp_path)
    share: dict[str, Any] = {"percent": 50.0, "interval95": [40.0, 60.0], "n": 10}
    rows = [
        {"trigger": name, "detector": "frequency", "caught": share, "false": share, "auc": [0.5, 0.4, 0.6]}
        for name in ("badnets", "data-poisoning", "data-poisoning, no low-pass")
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "input-detectors.jsonl").write_text(text, "utf-8")
    assert [line.split(" | ")[0] for line in data_poisoned_inputs_table().splitlines()[2:]] == [
        "| data-poisoning", "| data-poisoning, no low-pass",
    ]  # fmt: skip
    assert "badnets" in input_detectors_table()
