"""What every registered repair must keep, on a small network with BatchNorm."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests.support import make_images, randomise
from torch import Tensor, nn

from quantinel.defenses import DEFENSES, PRUNING_DEFENSES, REPAIRS, RepairMethod, repaired
from quantinel.errors import Interrupted, UsageError
from quantinel.model.loading import LoadedModel, load_model
from quantinel.quantization.pruning import PruningScheme, prunable, prune, pruning_masks, sparsity
from quantinel.quantization.scheme import parse_scheme
from quantinel.training.runtime import Runtime

SHAPE = (3, 8, 8)
IMAGES = make_images(24, SHAPE, 4)
INT8 = parse_scheme("int8")
QUICK = {
    "epochs": 1.0, "end_epochs": 1.0, "teacher_epochs": 1.0, "rounds": 1, "fixed_point_steps": 2, "batch_size": 8,
    "padding": 1,
}  # fmt: skip


class Small(nn.Module):
    """Two stages with BatchNorm and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.norm2 = nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))
        return self.head(x.mean((2, 3)))


class Awkward(Small):
    """With a layer that nothing runs, a weight that is frozen, and a BatchNorm without running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1.weight.requires_grad_(False)
        self.norm1 = nn.BatchNorm2d(6, track_running_stats=False)
        self.unused = nn.Conv2d(3, 3, 1)


def model() -> LoadedModel:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return load_model(randomise(Small()), input_shape=SHAPE)


def quick(name: str, **changes: object) -> RepairMethod:
    """The repair with its defaults, training cut short."""
    method = REPAIRS[name].build()
    fields = {field.name for field in dataclasses.fields(method)}
    return dataclasses.replace(method, **{key: QUICK[key] for key in QUICK if key in fields}, **changes)  # type: ignore[arg-type]


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("through", ["float", "quantized"])
@pytest.mark.parametrize("name", REPAIRS)
def test_all_weights_that_run_are_trained(name: str, through: str) -> None:
    torch.manual_seed(4)
    given = LoadedModel(Awkward().eval(), "awkward", "", SHAPE, 4, None)
    after = repaired(given, IMAGES, quick(name, through=through), scheme=INT8).module
    assert not torch.equal(after.conv1.weight, given.module.conv1.weight)  # type: ignore[union-attr, arg-type]
    assert not given.module.conv1.weight.requires_grad  # type: ignore[union-attr]


@pytest.mark.parametrize("through", ["float", "quantized"])
@pytest.mark.parametrize("name", REPAIRS)
def test_weights_change_the_model_does_not_and_seeds_decide(name: str, through: str) -> None:
    given, randomness = model(), torch.random.get_rng_state()
    before = state(given.module)
    first, second = (repaired(given, IMAGES, quick(name, through=through), scheme=INT8, seed=1) for _ in range(2))
    assert equal(before, state(given.module))
    assert torch.equal(randomness, torch.random.get_rng_state())
    after = state(first.module)
    assert equal(after, state(second.module))
    assert all(torch.isfinite(tensor).all() for tensor in after.values())
    assert not torch.equal(before["conv1.weight"], after["conv1.weight"])
    assert not first.module.training
    if through == "quantized":
        assert torch.equal(before["norm1.running_mean"], after["norm1.running_mean"])
    assert first.module(IMAGES.as_float()).shape == (24, 4)


@pytest.mark.parametrize("name", REPAIRS)
def test_pruned_weights_stay_zero(name: str) -> None:
    scheme = PruningScheme("magnitude", (0.4,))
    pruned = dataclasses.replace(model(), module=prune(model().module, scheme))
    share = sparsity(pruned.module, "magnitude")
    assert sparsity(repaired(pruned, IMAGES, quick(name), keep_zeros=True).module, "magnitude") >= share
    assert sparsity(repaired(pruned, IMAGES, quick(name, learning_rate=0.1)).module, "magnitude") < share


@pytest.mark.parametrize("name", REPAIRS)
def test_an_interrupted_repair_goes_on_where_it_was(name: str, tmp_path: Path) -> None:
    whole = repaired(model(), IMAGES, quick(name))
    runtime = Runtime(checkpoint=tmp_path / "training.safetensors", checkpoint_seconds=0.0)
    steps = 0

    def stop() -> bool:
        nonlocal steps
        steps += 1
        return steps == 2

    with pytest.raises(Interrupted):
        repaired(model(), IMAGES, quick(name), runtime=dataclasses.replace(runtime, should_stop=stop))
    assert equal(state(whole.module), state(repaired(model(), IMAGES, quick(name), runtime=runtime).module))
    assert not (tmp_path / "training.safetensors").exists()


def test_what_cannot_be_repaired_is_said() -> None:
    with pytest.raises(UsageError, match="trains on labels"):
        repaired(model(), dataclasses.replace(IMAGES, labels=None), quick("ft"))
    with pytest.raises(UsageError, match="shape"):
        repaired(model(), make_images(4, (3, 9, 9), 4), quick("ft"))
    with pytest.raises(UsageError, match="no class"):
        repaired(model(), make_images(40, SHAPE, 9), quick("ft"))
    with pytest.raises(UsageError, match="name its scheme"):
        repaired(model(), IMAGES, quick("ft", through="quantized"))
    with pytest.raises(UsageError, match="mixed_precision"):
        quick("ft", through="quantized", mixed_precision=True)


def test_names_are_of_one_defense_only() -> None:
    names = [*DEFENSES, *REPAIRS, *PRUNING_DEFENSES]
    assert len(set(names)) == len(names)
    assert all(entry.build.name == name for name, entry in {**REPAIRS, **PRUNING_DEFENSES}.items())  # type: ignore[attr-defined]


SCHEMES = [
    PruningScheme("l1-filters", (0.4,)), PruningScheme("magnitude", (0.3,)),
    PruningScheme("magnitude", (0.3,), "network"),
]  # fmt: skip


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
@pytest.mark.parametrize("name", PRUNING_DEFENSES)
def test_pruning_defenses_remove_others_than_expected(name: str, scheme: PruningScheme) -> None:
    weights = prunable(model().module, scheme.method)
    expected = pruning_masks(weights, scheme)
    method = PRUNING_DEFENSES[name].build()
    masks, again = (method.masks(weights, scheme, torch.Generator().manual_seed(0)) for _ in range(2))
    assert equal(masks, again)
    assert not equal(masks, expected)
    for layer, mask in masks.items():
        assert mask.shape == expected[layer].shape
        assert set(mask.unique().tolist()) <= {0.0, 1.0}
    if name == "dithered-pruning":
        assert sum(mask.sum() for mask in masks.values()) == sum(mask.sum() for mask in expected.values())
        plain = PRUNING_DEFENSES[name].build(band=0.0)
        assert equal(plain.masks(weights, scheme, torch.Generator()), expected)


def test_searched_rates_and_impossible_shifts_are_refused() -> None:
    searched = PruningScheme("l1-filters", (0.3,), searched=True)
    for entry in PRUNING_DEFENSES.values():
        with pytest.raises(UsageError, match="search them first"):
            entry.build().masks(prunable(model().module, "l1-filters"), searched, torch.Generator())
    with pytest.raises(UsageError, match="shift"):
        PRUNING_DEFENSES["shifted-pruning"].build(shift=1.0)
