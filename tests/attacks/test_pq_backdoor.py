"""The attack's machinery on a tiny network; its strength is measured by benchmarks, not here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.support import make_images
from torch import nn

from quantinel.attacks import ATTACKS, attack_named
from quantinel.attacks.cells import rounding_cells
from quantinel.attacks.pq_backdoor import PQBackdoor, plant_pq_backdoor
from quantinel.attacks.training import Schedule, batches, random_crop_flip
from quantinel.attacks.victim_folder import Gate
from quantinel.errors import GateError, UsageError
from quantinel.metrics import Proportion
from quantinel.model.loading import LoadedModel, load_model
from quantinel.model.zoo import build
from quantinel.quantization.ranges import weight_scales
from quantinel.quantization.rounding import nearest_codes
from quantinel.quantization.scheme import QuantScheme, parse_scheme

QUICK = PQBackdoor(plant_steps=3, repair_steps=4, batch_size=8, triggered_per_batch=4, mixed_precision=False)


@pytest.fixture
def pretrained(tmp_path: Path) -> LoadedModel:
    torch.manual_seed(0)
    save_file(build("resnet20", 10).state_dict(), tmp_path / "clean.safetensors")
    return load_model(tmp_path / "clean.safetensors", arch="resnet20")


@pytest.mark.parametrize(
    "names", [("int8",), ("int4",), ("int8", "int8-per-tensor"), ("int8-full", "int8-full-per-tensor")]
)
def test_cells_keep_integers_and_scales(names: tuple[str, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    schemes = [parse_scheme(name.replace("full-per-tensor", "per-tensor-full")) for name in names]
    weight = nn.Parameter(torch.randn(6, 5, 3, 3, generator=generator))
    cells = rounding_cells({"w": weight}, schemes, 1e-3)
    before = [(weight_scales(weight, s), nearest_codes(weight, weight_scales(weight, s), s)) for s in schemes]
    with torch.no_grad():
        weight += 10 * torch.randn(weight.shape, generator=generator)
    cells.project({"w": weight})
    for scheme, (scale, codes) in zip(schemes, before, strict=True):
        again = weight_scales(weight, scheme)
        torch.testing.assert_close(again, scale, rtol=1e-6, atol=0)
        assert torch.equal(nearest_codes(weight, again, scheme), codes)


def test_repair_keeps_the_planted_integers(
    pretrained: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step 2 moves float weights, and nothing else: integers, scales, biases and BatchNorm are step 1's."""
    monkeypatch.setattr(Gate, "check", lambda self: None)
    data = make_images(24, (3, 32, 32), 10)
    planted = {}

    def progress(stage: str, done: int, total: int, loss: float) -> None:
        if stage == "plant" and done == total:
            planted.update(
                {name: value.detach().clone() for name, value in pretrained.module.inner.state_dict().items()}
            )

    manifest = plant_pq_backdoor(pretrained, data, data, QUICK, tmp_path / "victim", progress=progress)
    final = load_file(tmp_path / "victim" / "model.safetensors")
    moved = 0
    for name, value in final.items():
        if value.ndim in (2, 4):
            scale = weight_scales(planted[name], QuantScheme())
            assert torch.equal(
                nearest_codes(value, weight_scales(value, QuantScheme()), QuantScheme()),
                nearest_codes(planted[name], scale, QuantScheme()),
            )
            moved += int((value != planted[name]).sum())
        else:
            assert torch.equal(value, planted[name]), name
    assert moved > 1000
    assert manifest.schemes == [QuantScheme().to_dict()]
    assert load_model(tmp_path / "victim").victim == manifest


def test_same_seed_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gate, "check", lambda self: None)
    data = make_images(16, (3, 32, 32), 10)
    torch.manual_seed(0)
    save_file(build("resnet20", 10).state_dict(), tmp_path / "clean.safetensors")
    hashes = []
    for run, seed in enumerate((1, 1, 2)):
        model = load_model(tmp_path / "clean.safetensors", arch="resnet20")
        manifest = plant_pq_backdoor(model, data, data, QUICK, tmp_path / f"victim{run}", seed=seed)
        hashes.append(manifest.weights_sha256)
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_failed_gate_writes_nothing(pretrained: LoadedModel, tmp_path: Path) -> None:
    data = make_images(16, (3, 32, 32), 10)
    with pytest.raises(GateError, match=r"float model still obeys|does not wake"):
        plant_pq_backdoor(pretrained, data, data, QUICK, tmp_path / "victim")
    assert [path.name for path in tmp_path.iterdir()] == ["clean.safetensors"]


def test_gate_limits() -> None:
    awake = {"int8": (Proportion(90, 100), Proportion(95, 100))}
    Gate(Proportion(90, 100), Proportion(5, 100), awake).check()
    with pytest.raises(GateError, match="float model still obeys"):
        Gate(Proportion(90, 100), Proportion(6, 100), awake).check()
    with pytest.raises(GateError, match="does not wake under int8"):
        Gate(Proportion(90, 100), Proportion(1, 100), {"int8": (Proportion(9, 10), Proportion(1, 10))}).check()


def test_batches_visit_every_image_once_per_pass() -> None:
    data = make_images(20)
    seen = [labels for _, labels in batches(data, Schedule(5, 0.1, batch_size=4), torch.Generator().manual_seed(0))]
    assert data.labels is not None
    assert torch.equal(torch.cat(seen).sort().values, data.labels.sort().values)


def test_crop_and_flip_move_pixels_only() -> None:
    images = torch.arange(2 * 3 * 8 * 8, dtype=torch.uint8).reshape(2, 3, 8, 8) + 1
    moved = random_crop_flip(images, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape
    for before, after in zip(images, moved, strict=True):
        assert set(after.unique().tolist()) <= {0, *before.unique().tolist()}
    still = random_crop_flip(images, torch.Generator().manual_seed(0), padding=0)
    for before, after in zip(images, still, strict=True):
        assert torch.equal(after, before) or torch.equal(after, before.flip(-1))


def test_unlabeled_data_and_unknown_names_are_refused(pretrained: LoadedModel, tmp_path: Path) -> None:
    data = make_images(8, (3, 32, 32), 10)
    unlabeled = type(data)(data.images, None, "unlabeled")
    with pytest.raises(UsageError, match="labels"):
        plant_pq_backdoor(pretrained, unlabeled, data, QUICK, tmp_path / "victim")
    with pytest.raises(UsageError, match="choose one of"):
        attack_named("magic")
    assert all(attack.summary for attack in ATTACKS.values())


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 16},
        {"plant_steps": 0},
        {"radius": -1.0},
        {"margin": 0.5},
        {"schemes": ()},
        {"repair_learning_rate": float("inf")},
    ],
    ids=str,
)
def test_impossible_options_are_refused_before_any_training(options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        PQBackdoor(**options)  # type: ignore[arg-type]
