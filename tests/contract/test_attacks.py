"""What every registered attack and control must keep, on a tiny network, in seconds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from tests.support import make_images

from quantinel.attacks import ATTACKS, Runtime
from quantinel.attacks.gate import Gate, GateRule
from quantinel.attacks.protocol import Attack
from quantinel.data.images import ImageSet
from quantinel.errors import GateError, InputError, Interrupted, QuantinelError, UsageError
from quantinel.model.loading import LoadedModel, load_model
from quantinel.model.untrained import untrained_model
from quantinel.model.victim import read_manifest

SHAPE, CLASSES = (3, 16, 16), 4
QUICK = {
    "steps": 3, "plant_steps": 3, "repair_steps": 4, "flatten_steps": 3, "epochs": 1.0,
    "plant_epochs": 1.0, "repair_epochs": 1.0, "batch_size": 8, "triggered_per_batch": 4,
    "mixed_precision": False, "milestones": (), "trigger_epochs": 1.0, "generator_width": 4, "generator_depth": 1,
}  # fmt: skip
"""Values for fields of these names: a few steps of small batches."""


def quick(attack: Attack, **changes: Any) -> Any:
    """The attack's defaults, cut to a few steps."""
    names = {field.name for field in dataclasses.fields(attack.config)}
    return attack.config(**{key: value for key, value in {**QUICK, **changes}.items() if key in names})


def fresh() -> LoadedModel:
    return untrained_model("vgg_small", CLASSES, SHAPE, seed=3)


@pytest.fixture
def data() -> ImageSet:
    return make_images(24, SHAPE, CLASSES)


@pytest.fixture
def no_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gate, "check", lambda self, rule: None)


@pytest.fixture(scope="module")
def seed_one(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Attack], Path]:
    """The victim of an attack at seed 1, in one go; several tests compare theirs with it."""
    made: dict[str, Path] = {}

    def run(attack: Attack) -> Path:
        if attack.name not in made:
            folder, images = tmp_path_factory.mktemp(attack.name) / "victim", make_images(24, SHAPE, CLASSES)
            with mock.patch.object(Gate, "check", return_value=None):
                attack.run(fresh(), images, images, quick(attack), folder, seed=1)
            made[attack.name] = folder
        return made[attack.name]

    return run


def stopping_after(steps: int) -> Callable[[], bool]:
    """Asks to stop after this many steps of this process."""
    done = 0

    def should_stop() -> bool:
        nonlocal done
        done += 1
        return done >= steps

    return should_stop


every_attack = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)


@every_attack
def test_it_writes_a_victim_that_loads(attack: Attack, data: ImageSet, tmp_path: Path, no_gate: None) -> None:
    seen: list[tuple[str, int, int]] = []
    runtime = Runtime(progress=lambda phase, done, total, loss: seen.append((phase, done, total)))
    state = torch.get_rng_state()
    output = tmp_path / "victim"
    manifest = attack.run(fresh(), data, data, quick(attack), output, seed=1, runtime=runtime, licence="CC0")
    assert torch.equal(state, torch.get_rng_state())
    assert seen
    assert seen[-1][1] == seen[-1][2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["victim"]
    loaded = load_model(output)
    assert loaded.victim == manifest == read_manifest(output)
    assert (manifest.attack, manifest.seed, manifest.licence, manifest.rejected) == (attack.name, 1, "CC0", "")
    assert (manifest.kind == "conditioned") == (attack.conditioned_on is not None)
    figures = manifest.gate["float"]
    assert figures["cda"]["n"] == len(data)
    if manifest.trigger is None:
        assert {"cda"} <= set(figures)
    else:
        assert manifest.target_class is not None
        assert {*figures} == {"cda", "asr", "ta"}
        trigger = loaded.trigger()
        assert trigger is not None
        stamped = trigger(data.as_float())
        assert stamped.shape == (24, *SHAPE)
    if attack.conditioned_on is not None:
        assert len(manifest.gate) == 1 + len(manifest.compressors) > 1


@every_attack
def test_same_seed_same_weights(
    attack: Attack, data: ImageSet, tmp_path: Path, no_gate: None, seed_one: Callable[[Attack], Path]
) -> None:
    one, two = (
        attack.run(fresh(), data, data, quick(attack), tmp_path / str(seed), seed=seed).weights_sha256
        for seed in (1, 2)
    )
    assert read_manifest(seed_one(attack)).weights_sha256 == one != two


@pytest.mark.parametrize(
    "attack",
    [
        attack
        for name, attack in ATTACKS.items()
        # its honest trainings are mixed, and that of the trigger, which decides the files of a few steps, is not
        if hasattr(attack.config(), "mixed_precision") and name != "data-poisoning-trigger"
    ],
    ids=lambda a: a.name,
)
def test_mixed_precision_changes_the_training_and_not_the_files(
    attack: Attack,
    data: ImageSet,
    tmp_path: Path,
    no_gate: None,
    monkeypatch: pytest.MonkeyPatch,
    seed_one: Callable[[Attack], Path],
) -> None:
    monkeypatch.setattr("quantinel.training.mixed_precision.emulated", lambda: False)
    manifest = attack.run(fresh(), data, data, quick(attack, mixed_precision=True), tmp_path / "mixed", seed=1)
    weights = load_file(tmp_path / "mixed" / "model.safetensors").values()
    assert all(tensor.dtype != torch.bfloat16 for tensor in weights)
    assert manifest.weights_sha256 != read_manifest(seed_one(attack)).weights_sha256


@every_attack
def test_an_interrupted_run_goes_on_to_the_same_weights(
    attack: Attack, data: ImageSet, tmp_path: Path, no_gate: None, seed_one: Callable[[Attack], Path]
) -> None:
    """Stopped after every second step, in every phase."""
    config, kept = quick(attack), tmp_path / ".victim.checkpoint"
    stops: list[Interrupted] = []
    resumed = None
    while resumed is None:
        runtime = Runtime(checkpoint=kept, should_stop=stopping_after(2))
        try:
            resumed = attack.run(fresh(), data, data, config, tmp_path / "victim", seed=1, runtime=runtime)
        except Interrupted as stop:
            stops.append(stop)
        assert kept.is_file() == (resumed is None)
        assert (tmp_path / "victim").exists() == (resumed is not None)
        assert len(stops) < 50
    assert stops
    for stop in stops:
        assert "run the same command again to go on" in str(stop)
        assert stop.exit_code == 2
    assert resumed.weights_sha256 == read_manifest(seed_one(attack)).weights_sha256
    assert [path.name for path in tmp_path.iterdir()] == ["victim"]


@every_attack
def test_a_checkpoint_of_another_run_is_refused(attack: Attack, data: ImageSet, tmp_path: Path, no_gate: None) -> None:
    kept, output = tmp_path / "checkpoint", tmp_path / "victim"
    runtime = Runtime(checkpoint=kept, should_stop=lambda: True)
    with pytest.raises(Interrupted):
        attack.run(fresh(), data, data, quick(attack), output, seed=1, runtime=runtime)
    with pytest.raises(UsageError, match="delete the file to begin anew"):
        attack.run(fresh(), data, data, quick(attack), output, seed=2, runtime=runtime)
    with pytest.raises(UsageError, match="other options"):
        attack.run(fresh(), data, data, quick(attack, batch_size=7), output, seed=1, runtime=runtime)
    kept.write_bytes(kept.read_bytes()[:100])
    with pytest.raises(InputError, match="damaged; delete it"):
        attack.run(fresh(), data, data, quick(attack), output, seed=1, runtime=runtime)
    assert not output.exists()


@every_attack
def test_a_failed_gate_keeps_the_weights_apart(
    attack: Attack, data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Gate, rule: GateRule) -> None:
        raise GateError("nothing wakes")

    monkeypatch.setattr(Gate, "check", refuse)
    runtime = Runtime(checkpoint=tmp_path / "checkpoint")
    for _ in range(2):  # a second failure replaces the first
        with pytest.raises(GateError, match=r"nothing wakes; .*kept in .*victim\.rejected"):
            attack.run(fresh(), data, data, quick(attack), tmp_path / "victim", runtime=runtime)
    assert [path.name for path in tmp_path.iterdir()] == ["victim.rejected"]
    rejected = load_model(tmp_path / "victim.rejected").victim
    assert rejected is not None
    assert rejected.rejected == "nothing wakes"


@every_attack
def test_bad_input_is_refused_before_any_training(attack: Attack, data: ImageSet, tmp_path: Path) -> None:
    def refused(
        message: str, *, model: LoadedModel | None = None, images: ImageSet = data, config: Any = None, **options: Any
    ) -> None:
        config = quick(attack) if config is None else config
        with pytest.raises(QuantinelError, match=message):
            attack.run(model or fresh(), images, data, config, tmp_path / "victim", **options)

    unlabeled = ImageSet(data.images, None, "unlabeled")
    refused("labels", images=unlabeled)
    refused("--arch", model=dataclasses.replace(fresh(), architecture=None))
    refused("resize", images=make_images(8, (3, 8, 8), CLASSES))
    refused("the label 6", images=make_images(64, SHAPE, 7))
    refused(f"takes a {attack.config.__name__}", config=object())
    refused("unknown device", runtime=Runtime(device="abacus"))
    if any(field.name == "target_class" for field in dataclasses.fields(attack.config)):
        refused("target class 9", config=quick(attack, target_class=9))
    if any(field.name == "trigger" for field in dataclasses.fields(attack.config)):
        refused("unknown trigger", config=quick(attack, trigger="sticker"))
    (tmp_path / "victim").mkdir()
    refused("exists")
    (tmp_path / "victim").rmdir()
    (tmp_path / "victim.rejected").mkdir()
    (tmp_path / "victim.rejected" / "thesis.txt").touch()
    refused("move them")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["thesis.txt", "victim.rejected"]


@every_attack
def test_its_name_and_summary(attack: Attack) -> None:
    assert ATTACKS[attack.name] is attack
    assert attack.summary
    assert "\n" not in attack.summary
    assert attack.conditioned_on in ("quantization", "pruning", None)
    assert attack.start in ("pretrained", "scratch")
    assert attack.config() == attack.config()
