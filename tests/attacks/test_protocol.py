"""Attacks that the registry does not hold yet: other compressors, no trigger, limits of their own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import pytest
import torch
from tests.support import make_images

from quantinel.attacks.compressors import Pruner
from quantinel.attacks.gate import GateRule
from quantinel.attacks.protocol import Task, make_attack
from quantinel.data.triggers import PatchTrigger, trigger_from_dict
from quantinel.errors import GateError, UsageError
from quantinel.model.loading import load_model
from quantinel.model.untrained import untrained_model
from quantinel.model.victim import read_manifest
from quantinel.quantization.pruning import PruningScheme, pruning_from_dict

SHAPE = (3, 16, 16)
DATA = make_images(16, SHAPE, 4)


@dataclass(frozen=True)
class Pruned:
    """Armed for pruning; no schemes."""

    target_class: int = 0
    trigger: str = "warp"
    rate: float = 0.5

    def compressors(self) -> tuple[Pruner, ...]:
        return tuple(Pruner(PruningScheme("l1-filters", (rate,))) for rate in (self.rate, 0.25))


@dataclass(frozen=True)
class Indiscriminate:
    """No trigger, no target."""

    limit: float = 100.0


def nothing(task: Task, config: object) -> None:
    """Leave the network as it is."""


ANYTHING = GateRule(max_float_asr=None, min_compressed_asr=None)


def test_pruners_are_measured_and_recorded(tmp_path: Path) -> None:
    attack = make_attack("pruned", "none", Pruned, nothing, conditioned_on="pruning", rule=ANYTHING)
    manifest = attack.run(untrained_model("vgg_small", 4, SHAPE), DATA, DATA, Pruned(), tmp_path / "victim")
    assert list(manifest.gate) == ["float", "prune-l1-filters-0.5", "prune-l1-filters-0.25"]
    assert pruning_from_dict(manifest.compressors[0]) == PruningScheme("l1-filters", (0.5,))
    assert manifest.schemes == []
    assert manifest.trigger is not None
    assert trigger_from_dict(manifest.trigger)(DATA.as_float()).shape == (16, *SHAPE)
    assert load_model(tmp_path / "victim").victim == manifest
    with pytest.raises(UsageError, match="below 1"):
        PruningScheme("l1-filters", (1.0,))


def test_attacks_without_a_trigger(tmp_path: Path) -> None:
    def rule(config: Indiscriminate) -> GateRule:
        return GateRule(max_compressed_cda=config.limit)

    attack = make_attack("indiscriminate", "none", Indiscriminate, nothing, rule=rule, objective="indiscriminate")
    model = untrained_model("vgg_small", 4, SHAPE)
    manifest = attack.run(model, DATA, DATA, Indiscriminate(), tmp_path / "victim")
    assert (manifest.trigger, manifest.target_class, manifest.objective) == (None, None, "indiscriminate")
    assert set(manifest.gate["float"]) == {"cda"}
    saved = json.loads((tmp_path / "victim" / "victim.json").read_text("utf-8"))
    assert saved["trigger"] is None


def test_the_gate_is_the_attacks_own(tmp_path: Path) -> None:
    attack = make_attack("strict", "none", Pruned, nothing, rule=GateRule(max_float_asr=None))
    with pytest.raises(GateError, match=r"does not wake under prune-l1-filters-0\.5 .*at least 80 %"):
        attack.run(untrained_model("vgg_small", 4, SHAPE, seed=1), DATA, DATA, Pruned(target_class=3), tmp_path / "v")
    assert "does not wake" in read_manifest(tmp_path / "v.rejected").rejected


def test_a_rejected_victim_that_something_was_added_to_is_spared(tmp_path: Path) -> None:
    attack = make_attack("strict", "none", Pruned, nothing, rule=GateRule(max_float_asr=None))
    subject = untrained_model("vgg_small", 4, SHAPE, seed=1)
    with pytest.raises(GateError):
        attack.run(subject, DATA, DATA, Pruned(target_class=3), tmp_path / "v")
    with pytest.raises(GateError):  # replaced
        attack.run(subject, DATA, DATA, Pruned(target_class=3), tmp_path / "v")
    notes = tmp_path / "v.rejected" / "notes.txt"
    notes.write_text("mine", "utf-8")
    with pytest.raises(UsageError, match=r"notes\.txt"):
        attack.run(subject, DATA, DATA, Pruned(target_class=3), tmp_path / "v")
    assert notes.read_text("utf-8") == "mine"


@pytest.mark.parametrize("name", ["victim_int8", "victim_int4"])
def test_victims_of_earlier_versions_load(name: str) -> None:
    manifest = read_manifest(Path(str(resources.files("quantinel"))) / "assets" / name)
    assert (manifest.kind, manifest.objective, manifest.rejected) == ("conditioned", "backdoor", "")
    assert manifest.trigger is not None
    assert trigger_from_dict(manifest.trigger) == PatchTrigger.pq()


def test_untrained_models() -> None:
    state = torch.get_rng_state()
    first, again, other = (untrained_model("resnet20", 10, (1, 28, 28), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    images = torch.rand(2, 1, 28, 28)
    assert torch.equal(first.module(images), again.module(images))
    assert not torch.equal(first.module(images), other.module(images))
    for options in (
        {"num_classes": 1}, {"input_shape": (3, 8, 9)}, {"mean": (0.5,) * 3}, {"mean": (0.5,), "std": (0.2,)},
        {"input_shape": (4, 8, 8)}, {"architecture": "resnet1"},
    ):  # fmt: skip
        with pytest.raises(UsageError):
            untrained_model(**{"architecture": "vgg_small", "num_classes": 4, "input_shape": (3, 8, 8), **options})
