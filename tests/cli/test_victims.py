"""Verbs that make, take and show victims."""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save
from tests.cli.tiny_cli import Run, Tiny, quadrant_images

from quantinel import attacks
from quantinel.attacks import Attack, Runtime
from quantinel.audit.report import read_report
from quantinel.data.images import ImageSet
from quantinel.errors import EXIT_ERROR, EXIT_FINDINGS, EXIT_PASS, EXIT_USAGE
from quantinel.model.loading import LoadedModel
from quantinel.model.victim import VictimManifest, write_manifest
from quantinel.model.zoo import build
from quantinel.pipeline import demo
from quantinel.quantization.scheme import QuantScheme, parse_scheme
from quantinel.training.schedule import Schedule


def victim_manifest(weights: bytes, **changes: Any) -> VictimManifest:
    """Manifest of a small network that was never attacked."""
    rate = {"percent": 1.0}
    values: dict[str, Any] = {
        "attack": "pq-backdoor", "architecture": "vgg_small", "num_classes": 4, "input_shape": (3, 8, 8),
        "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25),
        "trigger": {"kind": "patch", "row": 6, "column": 6, "height": 2, "width": 2, "value": 1.0},
        "target_class": 3, "schemes": [parse_scheme("int4").to_dict()], "data": "quadrants", "seed": 0, "config": {},
        "gate": {"float": {"cda": rate, "asr": rate}, "int4": {"cda": rate, "asr": rate}},
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
    }  # fmt: skip
    return VictimManifest(**{**values, **changes})


def write_victim(folder: Path, **changes: Any) -> Path:
    """A victim directory."""
    torch.manual_seed(0)
    weights = save(build("vgg_small", 4, 8).state_dict())
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes(weights)
    write_manifest(folder, victim_manifest(weights, **changes))
    return folder


def harden_command(victim: Path, tiny: Tiny, output: Path) -> list[Any]:
    options = ["--data", tiny.images, "--calibration-images", "16", "--rounding", "nearest"]
    return ["harden", victim, *options, "-o", output]


def test_a_victim_brings_its_trigger_and_scheme(run: Run, tiny: Tiny, empty: Path, tmp_path: Path) -> None:
    victim = write_victim(tmp_path / "victim")
    done = run(*harden_command(victim, tiny, empty / "out"))
    assert done.code in (EXIT_PASS, EXIT_FINDINGS)  # an untrained network: its answers are close calls
    notes = [line for line in done.err.splitlines() if "note" in line]
    assert notes == [
        "quantinel: note: a victim directory: testing its own trigger, target class 3",
        "quantinel: note: a victim directory: using its own scheme, int4",
    ]
    report = read_report(empty / "out" / "report.json")
    assert (report.request["scheme"], report.trigger and report.trigger["target_class"]) == ("int4", 3)
    done = run("evaluate", empty / "out", "--data", tiny.images, "--json")
    assert "testing the trigger of its report, target class 3" in done.err
    assert json.loads(done.out)["rows"][0]["asr"]["n"] == 48
    assert run("evaluate", empty / "out", "--data", tiny.images, "--scheme", "int8", "--quiet").code == EXIT_USAGE
    assert "already quantized" in run("harden", empty / "out", "--data", tiny.images, "-o", empty / "no").err


@pytest.mark.parametrize("trigger", [{"kind": "filter"}, {"kind": "blended", "alpha": 0.5}])
def test_a_hardened_folder_is_tested_with_any_trigger_that_its_report_describes(
    run: Run, tiny: Tiny, empty: Path, tmp_path: Path, trigger: dict[str, Any]
) -> None:
    victim = write_victim(tmp_path / "victim", trigger=trigger)
    assert run(*harden_command(victim, tiny, empty / "out")).code in (EXIT_PASS, EXIT_FINDINGS)
    done = run("evaluate", empty / "out", "--data", tiny.images, "--json")
    assert "testing the trigger of its report, target class 3" in done.err
    assert json.loads(done.out)["rows"][0]["asr"]["n"] == 48


def test_a_picture_as_a_trigger_has_to_be_given_again(run: Run, tiny: Tiny, empty: Path, tmp_path: Path) -> None:
    picture, victim = tmp_path / "dot.png", write_victim(tmp_path / "victim")
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[0, 0] = 255
    Image.fromarray(pixels).save(picture)
    given = ["--trigger", picture, "--target", "1"]
    assert run(*harden_command(victim, tiny, empty / "out"), *given).code in (EXIT_PASS, EXIT_FINDINGS)
    done = run("evaluate", empty / "out", "--data", tiny.images, "--json")
    assert "give it with --trigger" in done.err
    assert json.loads(done.out)["rows"][0]["asr"] is None
    done = run("evaluate", empty / "out", "--data", tiny.images, *given, "--json")
    assert json.loads(done.out)["rows"][0]["asr"]["n"] == 48


def test_options_win_over_the_victims_own(run: Run, tiny: Tiny, empty: Path, tmp_path: Path) -> None:
    victim = write_victim(tmp_path / "victim")
    options = ["--scheme", "int8-weight-only", "--trigger", tiny.trigger, "--target", "1"]
    done = run(*harden_command(victim, tiny, empty / "out"), *options)
    assert "note" not in done.err
    report = read_report(empty / "out" / "report.json")
    assert (report.request["scheme"], report.trigger and report.trigger["target_class"]) == ("int8-weight-only", 1)


def test_evaluate_a_victim(run: Run, tiny: Tiny, tmp_path: Path) -> None:
    victim = write_victim(tmp_path / "victim")
    done = run("evaluate", victim, "--data", tiny.images, "--json", "--quiet")
    rows = json.loads(done.out)["rows"]
    assert done.code == EXIT_PASS
    assert [row["variant"] for row in rows] == ["float"]
    assert rows[0]["asr"]["n"] == 48


@pytest.mark.parametrize("schemes", [[], [{"weight_bits": 4, "colour": "red"}], [{"weight_bits": 99}]])
def test_a_victim_with_a_bad_scheme(
    run: Run, tiny: Tiny, empty: Path, tmp_path: Path, schemes: list[dict[str, Any]]
) -> None:
    victim = write_victim(tmp_path / "victim", schemes=schemes)
    done = run("harden", victim, "--data", tiny.images, "-o", empty / "out", "--quiet")
    assert done.code in (EXIT_ERROR, EXIT_USAGE)
    assert done.error
    assert not list(empty.iterdir())


@dataclass(frozen=True)
class FakeConfig:
    """Hyper-parameters of an attack that does nothing."""

    schemes: tuple[QuantScheme, ...] = (QuantScheme(),)
    strength: float = 1.0


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Calls of an attack named ``fake``."""
    made: list[tuple[Any, ...]] = []

    def attack(
        model: LoadedModel, data: ImageSet, test: ImageSet, config: FakeConfig, output: Path, *,
        seed: int = 0, overwrite: bool = False, runtime: Runtime | None = None, licence: str = "",
    ) -> VictimManifest:  # fmt: skip
        assert runtime is not None
        assert runtime.progress is not None
        runtime.progress("plant", 1, 2, 0.5)
        made.append((model.architecture, len(data), len(test), config, seed, overwrite))
        write_victim(output)
        return victim_manifest(b"")

    monkeypatch.setitem(attacks.ATTACKS, "fake", Attack("fake", "does nothing", FakeConfig, attack))
    return made


def attack_command(tiny: Tiny, folder: Path) -> list[Any]:
    torch.manual_seed(0)
    (folder / "clean.safetensors").write_bytes(save(build("vgg_small", 4, 8).state_dict()))
    images, labels = quadrant_images(32, seed=1)
    np.savez(folder / "test.npz", images=images, labels=labels)
    return [
        "--arch", "vgg_small", "--weights", folder / "clean.safetensors", "--data", tiny.images, "--test",
        folder / "test.npz", "--input-shape", "3,8,8",
    ]  # fmt: skip


def test_attack_passes_its_options_on(
    run: Run, tiny: Tiny, empty: Path, tmp_path: Path, calls: list[tuple[Any, ...]]
) -> None:
    command = ["attack", "fake", *attack_command(tiny, tmp_path), "-o", empty / "victim", "--seed", "7"]
    done = run(*command, "--scheme", "int4", "--scheme", "int8", "--set", "strength=2")
    assert done.code == EXIT_PASS
    config = FakeConfig((parse_scheme("int4"), parse_scheme("int8")), 2.0)
    assert calls == [("vgg_small", 64, 32, config, 7, False)]
    assert "quantinel: planting the backdoor" in done.err.splitlines()
    assert "int4" in done.out
    assert run(*command, "--quiet").code == EXIT_USAGE  # it exists now
    assert json.loads(run(*command, "--force", "--json").out)["attack"] == "pq-backdoor"
    assert calls[-1][3] == FakeConfig()


def test_attack_refuses_what_it_cannot_use(
    run: Run, tiny: Tiny, empty: Path, tmp_path: Path, calls: list[tuple[Any, ...]]
) -> None:
    command = ["attack", "fake", *attack_command(tiny, tmp_path), "-o", empty / "victim", "--quiet"]
    assert "'schemes' is unknown" not in run(*command, "--set", "strength=0", "--force").err
    done = run(*command, "--force", "--scheme", "int4", "--set", "schemes=int8")
    assert "'schemes' is unknown" in done.error
    done = run(*command, "--force", "--test", tiny.images)
    assert (done.code, "give labelled test images" in done.error) == (EXIT_USAGE, True)


def test_an_attack_that_fails_its_gate_writes_no_victim(run: Run, tiny: Tiny, empty: Path, tmp_path: Path) -> None:
    steps = ["--set", "plant_steps=1", "--set", "repair_steps=1", "--set", "batch_size=16"]
    done = run(
        "attack", "pq-backdoor", *attack_command(tiny, tmp_path), *steps, "--set", "triggered_per_batch=2",
        "-o", empty / "victim", "--quiet",
    )  # fmt: skip
    assert done.code == EXIT_ERROR
    assert "ASR" in done.error
    assert [path.name for path in empty.iterdir()] == ["victim.rejected"]
    assert str(empty / "victim.rejected") in done.error


def test_clean_training_needs_no_weights(run: Run, tiny: Tiny, empty: Path, tmp_path: Path) -> None:
    data = attack_command(tiny, tmp_path)[4:]
    command = ["attack", "clean", "--arch", "vgg_small", *data, "--set", "epochs=1", "--set", "batch_size=16"]
    done = run(*command, "-o", empty / "clean")
    assert done.code == EXIT_PASS
    assert ("CDA" in done.out, "ASR" in done.out) == (True, False)
    assert [path.name for path in empty.iterdir()] == ["clean"]
    done = run("evaluate", empty / "clean", "--data", tiny.images, "--json")
    assert done.code == EXIT_PASS
    assert json.loads(done.out)["rows"][0]["asr"] is None
    hardened = run(*harden_command(empty / "clean", tiny, tmp_path / "out"))
    assert hardened.code in (EXIT_PASS, EXIT_FINDINGS)
    assert "using its own scheme, int8" in hardened.err
    start = ["--weights", empty / "clean", *data, "--set", "steps=2", "--set", "batch_size=8"]
    done = run("attack", "badnets", *start, "-o", empty / "badnets", "--quiet")
    assert done.code == EXIT_ERROR
    assert "does not obey the trigger" in done.error
    assert run("attack", "clean", *data, "-o", empty / "no", "--quiet").error.endswith("give --arch NAME")
    done = run("attack", "badnets", "--arch", "vgg_small", *data, "-o", empty / "no", "--quiet")
    assert "starts from a pretrained network" in done.error


def test_an_interrupted_attack_goes_on(
    run: Run, tiny: Tiny, empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal in the middle of the training, then the same command again."""
    data = attack_command(tiny, tmp_path)[4:]
    command = ["attack", "clean", "--arch", "vgg_small", *data, "--set", "epochs=2", "--set", "batch_size=16", "-o"]
    assert run(*command, empty / "whole", "--quiet").code == EXIT_PASS
    rate = Schedule.rate

    def signalled(self: Schedule, step: int) -> float:
        if step == 2:
            signal.raise_signal(signal.SIGTERM)
        return rate(self, step)

    monkeypatch.setattr(Schedule, "rate", signalled)
    done = run(*command, empty / "clean", "--quiet")
    assert done.code == EXIT_ERROR
    assert done.error.endswith("stopped in phase train after 3 of 8 steps; run the same command again to go on")
    assert sorted(path.name for path in empty.iterdir()) == [".clean.checkpoint", "whole"]
    monkeypatch.setattr(Schedule, "rate", rate)
    done = run(*command, empty / "clean")
    assert f"going on from {empty / '.clean.checkpoint'}" in done.err
    assert sorted(path.name for path in empty.iterdir()) == ["clean", "whole"]
    models = [(empty / name / "model.safetensors").read_bytes() for name in ("clean", "whole")]
    assert models[0] == models[1]


def test_devices(run: Run, tiny: Tiny, empty: Path, tmp_path: Path) -> None:
    command = ["attack", "clean", "--arch", "vgg_small", *attack_command(tiny, tmp_path)[4:], "-o", empty / "victim"]
    done = run(*command, "--device", "abacus", "--quiet")
    assert (done.code, "choose cpu, cuda" in done.error) == (EXIT_USAGE, True)


def test_demo_tells_the_story(
    run: Run, tiny: Tiny, empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = empty / "hardened"
    assert run(*tiny.harden(out), "--trigger", tiny.trigger, "--target", "1").code == EXIT_PASS
    report = read_report(out / "report.json")
    reports = [report, report.model_copy(update={"verdict": "FAIL", "summary": "Do not deploy this file."})]
    asked: list[tuple[str, ...]] = []

    def run_demo(
        output: Path, victims: tuple[str, ...], progress: Callable[..., None], overwrite: bool
    ) -> list[demo.DemoResult]:
        asked.append(victims)
        return [
            demo.DemoResult(f"{name} victim", found, output / name)
            for name, found in zip(victims, reports, strict=False)
        ]

    monkeypatch.setattr(demo, "run_demo", run_demo)
    done = run("demo", "--victim", "int8", "-o", empty / "story")
    assert done.code == EXIT_PASS
    assert "\n1. The float model" in done.out
    assert "2 of 2 layers hold exactly the chosen integers, 2 run in integers" in done.out
    assert "1 of 1 hardened files passed" in done.out
    assert str(empty / "story" / "int8" / "report.html") in done.out.replace("\n", "")
    done = run("demo", "-o", empty / "story")
    assert done.code == EXIT_FINDINGS
    assert asked == [("int8",), ("int8", "int4")]
    assert "FAIL  Do not deploy this file." in done.out


@pytest.mark.slow
def test_the_real_demo(run: Run, empty: Path) -> None:
    try:
        demo.bundled_victim("int8")
    except Exception:
        pytest.skip("no bundled victim")
    done = run("demo", "-o", empty / "story", "--quiet")
    assert done.code == EXIT_PASS
    assert "2 of 2 hardened files passed" in done.out
    assert run("demo", "-o", empty / "story", "--quiet").code == EXIT_USAGE
    assert run("demo", "-o", empty / "story", "--quiet", "--force", "--victim", "int4").code == EXIT_PASS


def test_a_generated_trigger_travels_with_its_weights(run: Run, tiny: Tiny, empty: Path, tmp_path: Path) -> None:
    """Victim directory -> attack --trigger -> evaluate -> harden -> evaluate the hardened folder."""
    data = ["--arch", "vgg_small", *attack_command(tiny, tmp_path)[4:]]
    small = [f"--set={text}" for text in ("batch_size=16", "epochs=0.5", "generator_width=4", "generator_depth=1")]
    stage_one = ["attack", "data-poisoning-trigger", *data, *small, "--set", "trigger_epochs=1"]
    done = run(*stage_one, "-o", empty / "trigger", "--json")
    assert done.code == EXIT_PASS
    assert json.loads(done.out)["trigger"]["kind"] == "generated"
    stage_two = ["attack", "data-poisoning", *data, *small, "--trigger", empty / "trigger", "-o", empty / "victim"]
    assert run(*stage_two, "--quiet").code == EXIT_ERROR  # no victim after so few steps
    victim = empty / "victim.rejected"
    assert sorted(path.name for path in victim.iterdir()) == [
        "model.safetensors",
        "poisoned",
        "trigger.safetensors",
        "victim.json",
    ]
    done = run("evaluate", victim, "--data", tiny.images, "--json", "--quiet")
    assert json.loads(done.out)["rows"][0]["asr"]["n"] == 48
    assert run(*harden_command(victim, tiny, empty / "out")).code in (EXIT_PASS, EXIT_FINDINGS)
    done = run("evaluate", empty / "out", "--data", tiny.images, "--json")
    assert "testing the trigger of its report, target class 0" in done.err
    assert json.loads(done.out)["rows"][0]["asr"]["n"] == 48
    assert run("verify", empty / "out", "--quiet").code == EXIT_PASS
    file = victim / "poisoned" / "trigger.json"
    done = run("evaluate", victim, "--data", tiny.images, "--trigger", file, "--target", "0", "--quiet")
    assert done.code == EXIT_PASS


def test_a_trigger_is_only_given_to_attacks_that_take_one(run: Run, tiny: Tiny, empty: Path, tmp_path: Path) -> None:
    command = ["--arch", "vgg_small", *attack_command(tiny, tmp_path)[4:], "-o", empty / "no", "--quiet"]
    done = run("attack", "clean", *command, "--trigger", tiny.trigger)
    assert (done.code, "takes no --trigger" in done.error) == (EXIT_USAGE, True)
    assert run("attack", "clean", *command, "--set", "epochs=0.5", "--set", "batch_size=16").code == EXIT_PASS
    done = run("attack", "data-poisoning", *command, "--force", "--trigger", empty / "no")
    assert "has no trigger" in done.error
