"""Poisoned sets, the alternation of surrogate and generator, and victims that train on what they are given."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.support import make_images

from quantinel.attacks import ATTACKS, DataPoisoning, TriggerTraining
from quantinel.attacks.clean import CleanTraining
from quantinel.attacks.data_poisoning import DATA_POISONING, draw_seed
from quantinel.attacks.gate import Gate
from quantinel.attacks.poisoned_set import poison, poisoned_files
from quantinel.attacks.trigger_training import (
    DATA_POISONING_TRIGGER,
    _Alternation,
    another,
    seeded_generator,
    train_trigger,
)
from quantinel.data.sources import load_images
from quantinel.data.triggers import GeneratedTrigger, PatchTrigger, load_trigger
from quantinel.errors import UsageError
from quantinel.model.loading import LoadedModel, load_model
from quantinel.model.untrained import untrained_model
from quantinel.quantization.scheme import QuantScheme
from quantinel.training.batches import Order
from quantinel.training.run import TrainingRun

SHAPE, CLASSES = (3, 16, 16), 4
DATA = make_images(40, SHAPE, CLASSES)
PATCH = PatchTrigger(0, 0, 4, 4, 1.0)
TINY: dict[str, Any] = {
    "generator_width": 4, "generator_depth": 1, "batch_size": 8, "trigger_epochs": 0.8, "epochs": 0.4,
    "mixed_precision": False,
}  # fmt: skip


@pytest.fixture
def no_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gate, "check", lambda self, rule: None)


def fresh() -> LoadedModel:
    return untrained_model("vgg_small", CLASSES, SHAPE, seed=3)


def alternation(**changes: Any) -> tuple[TrainingRun, _Alternation]:
    options = TriggerTraining(**{**TINY, "start_from": "pretrained", **changes})
    run = TrainingRun(fresh(), DATA)
    clean = another(run, 1).eval().requires_grad_(False)
    return run, _Alternation(run, run.module, clean, seeded_generator(options.generator(3), 0), options)


def labels() -> torch.Tensor:
    assert DATA.labels is not None
    return DATA.labels


@pytest.mark.parametrize("kind", ["dirty", "clean"])
def test_a_share_of_all_images_is_poisoned(kind: Any) -> None:
    target = int(labels().mode().values)
    made = poison(DATA, PATCH, target, 0.2, kind, seed=1)
    assert len(made.indices) == 8
    assert torch.equal(made.indices, made.indices.sort().values)
    poisoned = torch.zeros(40, dtype=torch.bool)
    poisoned[made.indices] = True
    published = made.images.labels
    assert published is not None
    assert torch.equal(made.images.images[~poisoned], DATA.images[~poisoned])
    assert torch.equal(published[~poisoned], labels()[~poisoned])
    assert (made.images.images[poisoned][:, :, :4, :4] == 255).all()
    assert (published[poisoned] == target).all()
    if kind == "clean":
        assert (labels()[poisoned] == target).all()
    else:
        assert (labels()[poisoned] != target).any()
    assert torch.equal(poison(DATA, PATCH, target, 0.2, kind, seed=1).indices, made.indices)
    assert not torch.equal(poison(DATA, PATCH, target, 0.2, kind, seed=2).indices, made.indices)


def test_a_rate_of_nothing_changes_nothing() -> None:
    made = poison(DATA, PATCH, 0, 0.0, "dirty", seed=0)
    assert made.images.sha256() == DATA.sha256()
    assert not len(made.indices)


def test_clean_labels_need_images_of_the_target() -> None:
    with pytest.raises(UsageError, match="lower poison_rate"):
        poison(DATA, PATCH, 0, 0.9, "clean", seed=0)


def test_any_training_code_can_read_the_set(tmp_path: Path) -> None:
    trigger = GeneratedTrigger.of(seeded_generator(TriggerTraining(**TINY).generator(3), 0))
    made = poison(DATA, trigger, 1, 0.25, "dirty", seed=0)
    for name, data in poisoned_files(made).items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    folder = tmp_path / "poisoned"
    assert sorted(path.name for path in folder.iterdir()) == [
        "poisoned.json", "poisoned.npz", "train.npz", "trigger.json", "trigger.safetensors",
    ]  # fmt: skip
    read = load_images(folder / "train.npz")
    assert read.sha256() == made.images.sha256()
    assert load_trigger(folder / "trigger.json") == trigger
    with np.load(folder / "poisoned.npz") as arrays:
        assert arrays["indices"].tolist() == made.indices.tolist()
    about = json.loads((folder / "poisoned.json").read_text())
    assert (about["poisoned"], about["rate"], about["target_class"], about["data_sha256"]) == (
        10,
        0.25,
        1,
        DATA.sha256(),
    )
    assert poisoned_files(made) == poisoned_files(poison(DATA, trigger, 1, 0.25, "dirty", seed=0))


def test_each_turn_trains_one_network() -> None:
    run, losses = alternation(surrogate_steps=2, trigger_steps=1)
    for step, on_surrogate in enumerate((True, True, False, True)):
        run.step = step
        run.module.zero_grad()
        losses.generator.zero_grad()
        losses(DATA.images[:8], labels()[:8]).backward()
        assert all((weight.grad is not None) == on_surrogate for weight in run.module.parameters())
        assert all((weight.grad is not None) != on_surrogate for weight in losses.generator.parameters())
        assert run.module.training == on_surrogate


def test_the_loss_of_the_trigger_is_that_of_the_paper() -> None:
    _, losses = alternation(activations=False, avoidance_weight=0.5, norm_weight=0.1)
    losses.surrogate.eval()
    x, y = DATA.as_float()[:8], labels()[:8]
    with torch.no_grad():
        noise = losses.generator.noise(x)
        triggered = losses.generator(x).clamp(0, 1)
        rounded = losses.both(triggered)[1]
        expected = (
            F.cross_entropy(losses.surrogate(triggered), y)
            + F.cross_entropy(rounded, torch.zeros_like(y))
            + 0.5 * F.cross_entropy(losses.clean(triggered)[0], y)
            + 0.1 * (noise**2).sum((1, 2, 3)).sqrt().mean()
        )
        torch.testing.assert_close(losses.trigger_loss(DATA.images[:8], y), expected)
        assert not torch.equal(rounded, losses.surrogate(triggered))


def test_observers_differ_in_the_activations_that_they_clip() -> None:
    answers = []
    for observer in ("range", "percentile"):
        _, losses = alternation(observer=observer, schemes=(QuantScheme(weight_bits=4),))
        losses.surrogate.eval()
        with torch.no_grad():
            answers.append(losses.both(DATA.as_float()[:8])[1])
    assert not torch.equal(*answers)


def test_the_surrogate_learns_what_a_victim_would() -> None:
    """With clean labels only images of the target class are triggered; a rate of 0 triggers none."""
    for kind, rate, expected in (("dirty", 0.5, 4), ("dirty", 0.0, 0), ("clean", 0.5, 1)):
        _, losses = alternation(labels=kind, poison_rate=rate, padding=0, mirror=False, target_class=2)
        seen: list[torch.Tensor] = []
        losses.surrogate.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0]))
        y = torch.tensor([0, 1, 2, 0, 1, 1, 3, 3])
        losses.surrogate_loss(DATA.images[:8], y)
        changed = (seen[0] != DATA.as_float()[:8]).flatten(1).any(1)
        assert int(changed.sum()) == expected


def test_without_alternation_the_surrogate_stays() -> None:
    options = TriggerTraining(**TINY, start_from="pretrained", surrogate_steps=0)
    run = TrainingRun(fresh(), DATA)
    before = {name: tensor.clone() for name, tensor in run.module.state_dict().items()}
    with run.isolated():
        trigger = train_trigger(run, run.module, options)
    assert all(torch.equal(before[name], tensor) for name, tensor in run.module.state_dict().items())
    assert trigger != GeneratedTrigger.of(seeded_generator(options.generator(3), 0))


def test_the_generator_learns() -> None:
    options = TriggerTraining(
        **{**TINY, "trigger_epochs": 12.0}, start_from="pretrained", surrogate_steps=0, avoidance_weight=0.0,
        magnitude=0.5, trigger_optimiser="adam",
    )  # fmt: skip
    run, losses = alternation(surrogate_steps=0, avoidance_weight=0.0, magnitude=0.5)
    losses.surrogate.eval()
    with torch.no_grad():
        before = float(losses.trigger_loss(DATA.images, labels()))
    with run.isolated():
        trigger = train_trigger(run, run.module, options)
    losses.generator = trigger._generator
    with torch.no_grad():
        assert float(losses.trigger_loss(DATA.images, labels())) < before - 0.05


def test_a_victim_of_a_lent_trigger(tmp_path: Path, no_gate: None) -> None:
    """The set is what the victim trained on, and training on it gives the victim's bits."""
    config = DataPoisoning(**TINY, poison_rate=0.25)
    manifest = DATA_POISONING.run(fresh(), DATA, DATA, config, tmp_path / "victim", seed=4, trigger=PATCH)
    assert manifest.trigger == PATCH.to_dict()
    honest = CleanTraining(epochs=0.4, batch_size=8, mixed_precision=False)
    published = load_images(tmp_path / "victim" / "poisoned" / "train.npz")
    again = ATTACKS["clean"].run(fresh(), published, DATA, honest, tmp_path / "again", seed=4)
    assert again.weights_sha256 == manifest.weights_sha256
    control = dataclasses.replace(config, poison_rate=0.0, keep_data=False)
    unpoisoned = DATA_POISONING.run(fresh(), DATA, DATA, control, tmp_path / "control", seed=4, trigger=PATCH)
    clean = ATTACKS["clean"].run(fresh(), DATA, DATA, honest, tmp_path / "clean", seed=4)
    assert unpoisoned.weights_sha256 == clean.weights_sha256
    assert sorted(path.name for path in (tmp_path / "control").iterdir()) == ["model.safetensors", "victim.json"]


def test_the_training_does_not_begin_with_the_poisoned_images() -> None:
    data = make_images(400, (3, 16, 16), CLASSES)
    for seed in range(5):
        made = poison(data, PATCH, 0, 0.2, "dirty", draw_seed(seed))
        run = TrainingRun(fresh(), data, seed=seed)
        first = Order.begin(len(data), run.generator).take(80)
        assert int(torch.isin(first, made.indices).sum()) < 32


def test_stage_one_lends_its_trigger(tmp_path: Path, no_gate: None) -> None:
    DATA_POISONING_TRIGGER.run(fresh(), DATA, DATA, TriggerTraining(**TINY), tmp_path / "surrogate", seed=1)
    trigger = load_model(tmp_path / "surrogate").trigger()
    assert isinstance(trigger, GeneratedTrigger)
    config = DataPoisoning(**TINY, start_from="pretrained")
    DATA_POISONING.run(fresh(), DATA, DATA, config, tmp_path / "victim", seed=1, trigger=trigger)
    assert load_model(tmp_path / "victim").trigger() == trigger


def test_the_honest_recipe_keeps_its_names_and_defaults() -> None:
    expected: dict[str, Any] = {
        "schemes": (QuantScheme(),), "epochs": 30.0, "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 5e-4,
        "batch_size": 128, "optimiser": "sgd", "padding": 4, "mirror": True, "mixed_precision": True,
    }  # fmt: skip
    for options in (CleanTraining(), TriggerTraining(), DataPoisoning()):
        assert {name: getattr(options, name) for name in expected} == expected


def test_options_of_another_attack_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="takes a CleanTraining, not a TriggerTraining"):
        ATTACKS["clean"].run(fresh(), DATA, DATA, TriggerTraining(), tmp_path / "no")


def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="takes no trigger"):
        ATTACKS["clean"].run(fresh(), DATA, DATA, CleanTraining(), tmp_path / "no", trigger=PATCH)
    trained = fresh()
    for part in trained.module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean = torch.ones(part.num_features)
    for attack, config in ((DATA_POISONING, DataPoisoning()), (DATA_POISONING_TRIGGER, TriggerTraining())):
        with pytest.raises(UsageError, match="start_from=pretrained"):
            attack.run(trained, DATA, DATA, config, tmp_path / "no")
    for wrong, message in (
        ({"poison_rate": 1.0}, "below 1"), ({"ratio": 2.0}, "ratio"), ({"blur_size": 2}, "odd"),
        ({"labels": "true"}, "dirty, clean"), ({"schemes": ()}, "--scheme"), ({"trigger_steps": 0}, "at least 1"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            TriggerTraining(**wrong)
