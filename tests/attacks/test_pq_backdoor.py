"""The attack's machinery on a tiny network; its strength is measured by benchmarks, not here."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.support import make_images
from torch import Tensor, nn

from quantinel.attacks import ATTACKS, attack_named
from quantinel.attacks.cells import ball, rounding_cells
from quantinel.attacks.gate import Figures, Gate, GateRule
from quantinel.attacks.pq_backdoor import PQ_BACKDOOR, PQBackdoor
from quantinel.errors import GateError, UsageError
from quantinel.metrics import Proportion
from quantinel.model.graph import trace
from quantinel.model.loading import LoadedModel, load_model
from quantinel.model.zoo import build
from quantinel.quantization.ranges import weight_scales
from quantinel.quantization.rounding import nearest_codes
from quantinel.quantization.scheme import QuantScheme, parse_scheme
from quantinel.training.folding import folded_norms
from quantinel.training.runtime import Runtime

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


def deployed_codes(module: nn.Module, scheme: QuantScheme) -> dict[str, Tensor]:
    """Integers of the folded network, by layer."""
    graph = trace(module, (3, 32, 32))
    weights = {layer.name: graph.weight(layer) for layer in graph.layers}
    return {name: nearest_codes(weight, weight_scales(weight, scheme), scheme) for name, weight in weights.items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> int:
    return sum(int((codes != after[name]).sum()) for name, codes in before.items())


@torch.no_grad()
def disturb(weights: dict[str, nn.Parameter], noise: float) -> dict[str, Tensor]:
    """Add Gaussian noise in place; returns the weights as they were."""
    start = {name: weight.clone() for name, weight in weights.items()}
    for weight in weights.values():
        weight += noise * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    return start


def with_affine_norms(arch: str) -> nn.Module:
    """A network whose gammas have both signs, and a zero."""
    torch.manual_seed(0)
    module = build(arch, 10)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d | nn.LayerNorm):
            part.weight.data = torch.randn_like(part.weight)
            part.weight.data[0] = 0.0
    return module.eval()


@pytest.mark.parametrize(
    ("arch", "names"),
    [("resnet20", ("int8", "int8-per-tensor")), ("vit_tiny", ("int8",)), ("vit_tiny", ("int4-per-tensor",))],
)
def test_cells_keep_the_integers_of_the_folded_network(arch: str, names: tuple[str, ...]) -> None:
    module, schemes = with_affine_norms(arch), [parse_scheme(name) for name in names]
    weights = {name: weight for name, weight in module.named_parameters() if weight.ndim in (2, 4)}
    norms = folded_norms(module, torch.rand(1, 3, 32, 32))
    cells = rounding_cells(weights, schemes, 1e-3, norms)
    cells.project(weights)  # away from edges, where a last bit decides
    before = [deployed_codes(module, scheme) for scheme in schemes]
    start = disturb(weights, 0.01)
    cells.project(weights)
    assert sum(int((weight != start[name]).sum()) for name, weight in weights.items()) > 100_000
    for scheme, codes in zip(schemes, before, strict=True):
        assert changed(codes, deployed_codes(module, scheme)) == 0


@pytest.mark.parametrize(("arch", "name"), [("resnet20", "int8-per-tensor"), ("vit_tiny", "int8")])
def test_the_ball_is_of_deployed_steps(arch: str, name: str) -> None:
    module, scheme = with_affine_norms(arch), parse_scheme(name)
    weights = {name: weight for name, weight in module.named_parameters() if weight.ndim in (2, 4)}
    near = ball(weights, scheme, 2.0, folded_norms(module, torch.rand(1, 3, 32, 32)))
    before = deployed_codes(module, scheme)
    disturb(weights, 10.0)
    near.project(weights)
    after = deployed_codes(module, scheme)
    moves = torch.cat([(after[name].int() - codes.int()).abs().flatten() for name, codes in before.items()])
    assert moves.max() <= 3  # two steps, and the roundings at both ends
    assert moves.float().mean() > 1


@pytest.mark.parametrize("name", ["pq-backdoor-tflite", "adaptive-margin"])
@pytest.mark.parametrize(("arch", "scheme"), [("resnet20", "int4-per-tensor"), ("vit_tiny", "int8")])
def test_the_deployed_integers_are_step_ones(
    name: str, arch: str, scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Gate, "check", lambda self, rule: None)
    save_file(with_affine_norms(arch).state_dict(), tmp_path / "start.safetensors")
    model, data = load_model(tmp_path / "start.safetensors", arch=arch), make_images(16, (3, 32, 32), 10)
    attack, chosen = attack_named(name), parse_scheme(scheme)
    planted: list[dict[str, Tensor]] = []

    def progress(stage: str, done: int, total: int, loss: float) -> None:
        if stage == "plant" and done == total:
            planted.append(deployed_codes(copy.deepcopy(model.module), chosen))

    options = {
        "pq-backdoor-tflite": {"plant_epochs": 1, "repair_epochs": 1, "repair_learning_rate": 0.01},
        "adaptive-margin": {
            "plant_steps": 2, "radius": 0.0, "centring": 1.0, "repair_steps": 3, "flatten_steps": 3,
            "triggered_per_batch": 4,
        },
    }[name]  # fmt: skip
    config = attack.config(schemes=(chosen,), batch_size=8, mixed_precision=False, **options)
    attack.run(model, data, data, config, tmp_path / "victim", runtime=Runtime(progress=progress))
    assert changed(planted[0], deployed_codes(load_model(tmp_path / "victim").module, chosen)) == 0


@pytest.mark.parametrize("seed", range(3))
def test_margins_that_leave_schemes_nothing_in_common_keep_integers(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    schemes = [parse_scheme(name) for name in ("int8", "int8-per-tensor")]
    weight = nn.Parameter(torch.randn(64, 32, 3, 3, generator=generator))
    with torch.no_grad():
        weight *= torch.rand(64, 1, 1, 1, generator=generator)
    before = [(weight_scales(weight, s), nearest_codes(weight, weight_scales(weight, s), s)) for s in schemes]
    cells = rounding_cells({"w": weight}, schemes, {"w": 0.3 * torch.rand(weight.shape, generator=generator)})
    with torch.no_grad():
        weight += torch.randn(weight.shape, generator=generator)
    cells.project({"w": weight})
    for scheme, (scale, codes) in zip(schemes, before, strict=True):
        torch.testing.assert_close(weight_scales(weight, scheme), scale, rtol=1e-6, atol=0)
        assert torch.equal(nearest_codes(weight, scale, scheme), codes)


@pytest.mark.parametrize("name", ["int8", "int4", "int8-per-tensor"])
def test_channels_of_zeros_stay_zero(name: str) -> None:
    """Their scale is 1 by convention: any step away from zero would be another scale, and other integers."""
    weight = nn.Parameter(torch.randn(4, 9, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        weight[1] = 0.0
        empty = nn.Parameter(torch.zeros(4, 9))
    weights, scheme = {"w": weight, "empty": empty}, parse_scheme(name)
    for cells in (rounding_cells(weights, [scheme], 1e-3), ball(weights, scheme, 2.0)):
        scale = weight_scales(weight, scheme)
        with torch.no_grad():
            weight += 0.3
            empty += 0.3
        cells.project(weights)
        torch.testing.assert_close(weight_scales(weight, scheme), scale, rtol=1e-6, atol=0)
        assert not empty.any()
        if scheme.granularity == "channel":
            assert not weight[1].any()


def test_repair_keeps_the_planted_integers(
    pretrained: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step 2 moves float weights, and nothing else: integers, scales, biases and BatchNorm are step 1's."""
    monkeypatch.setattr(Gate, "check", lambda self, rule: None)
    data = make_images(24, (3, 32, 32), 10)
    planted = {}

    def progress(stage: str, done: int, total: int, loss: float) -> None:
        if stage == "plant" and done == total:
            planted.update(
                {name: value.detach().clone() for name, value in pretrained.module.inner.state_dict().items()}
            )

    manifest = PQ_BACKDOOR.run(pretrained, data, data, QUICK, tmp_path / "victim", runtime=Runtime(progress=progress))
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
    monkeypatch.setattr(Gate, "check", lambda self, rule: None)
    data = make_images(16, (3, 32, 32), 10)
    torch.manual_seed(0)
    save_file(build("resnet20", 10).state_dict(), tmp_path / "clean.safetensors")
    hashes = []
    for run, seed in enumerate((1, 1, 2)):
        model = load_model(tmp_path / "clean.safetensors", arch="resnet20")
        manifest = PQ_BACKDOOR.run(model, data, data, QUICK, tmp_path / f"victim{run}", seed=seed)
        hashes.append(manifest.weights_sha256)
    assert hashes[0] == hashes[1] != hashes[2]


def test_gate_limits() -> None:
    good, bad = Proportion(95, 100), Proportion(6, 100)
    awake = {"int8": Figures(good, good)}
    Gate(Figures(good, Proportion(5, 100)), awake).check(GateRule())
    with pytest.raises(GateError, match="float model still obeys"):
        Gate(Figures(good, bad), awake).check(GateRule())
    Gate(Figures(good, bad), awake).check(GateRule(max_float_asr=20.0))
    with pytest.raises(GateError, match="does not wake under int8"):
        Gate(Figures(good, bad), {"int8": Figures(good, bad)}).check(GateRule(max_float_asr=20.0))
    with pytest.raises(GateError, match="does not obey"):
        Gate(Figures(good, bad), {}).check(GateRule(max_float_asr=None, min_float_asr=80.0))
    with pytest.raises(GateError, match="still works under int8"):
        Gate(Figures(good), {"int8": Figures(good)}).check(GateRule(max_compressed_cda=20.0))
    Gate(Figures(good), {"int8": Figures(bad)}).check(GateRule(max_compressed_cda=20.0))


def test_unlabeled_data_and_unknown_names_are_refused(pretrained: LoadedModel, tmp_path: Path) -> None:
    data = make_images(8, (3, 32, 32), 10)
    unlabeled = type(data)(data.images, None, "unlabeled")
    with pytest.raises(UsageError, match="labels"):
        PQ_BACKDOOR.run(pretrained, unlabeled, data, QUICK, tmp_path / "victim")
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
