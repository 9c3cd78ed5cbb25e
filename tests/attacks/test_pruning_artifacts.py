"""The losses of the pruning attacks, term by term, and what their branches are."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from tests.support import make_images

from quantinel.attacks.distillation import disagreement
from quantinel.attacks.gate import GateRule
from quantinel.attacks.held_out import hold_out
from quantinel.attacks.joint import soft_cross_entropy
from quantinel.attacks.pruned_training import PrunedBranches, PruningOptions, gate_rule, pruned_loss
from quantinel.attacks.pruning_artifacts import PruningArtifacts, float_branch
from quantinel.attacks.pruning_artifacts_distilled import PruningArtifactsDistilled
from quantinel.data.triggers import PatchTrigger
from quantinel.errors import UsageError
from quantinel.model.untrained import untrained_model
from quantinel.quantization.pruning import parse_pruning, prune
from quantinel.training.run import TrainingRun
from quantinel.training.transforms import pruned_filters
from quantinel.training.two_branch import FLOAT, Branch, Branches

LABELS, TARGET = torch.tensor([0, 2, 3]), torch.tensor([1, 1, 1])


def logits(seed: int) -> torch.Tensor:
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(seed))


def test_the_loss_of_a_known_rate() -> None:
    one = logits(1)
    expected = 0.9 * F.cross_entropy(one[:3], LABELS) + 0.1 * F.cross_entropy(one[3:], TARGET)
    torch.testing.assert_close(pruned_loss([one], LABELS, TARGET), expected)


def test_three_rates_have_a_third_each() -> None:
    three = [logits(seed) for seed in range(3)]
    expected = sum(pruned_loss([one], LABELS, TARGET) for one in three) / 3
    torch.testing.assert_close(pruned_loss(three, LABELS, TARGET), expected)


def test_the_float_branch_keeps_the_true_labels() -> None:
    both = torch.rand(6, 3, 4, 4)
    seen, loss = float_branch(both, LABELS)
    assert seen is both
    torch.testing.assert_close(loss(logits(5)), F.cross_entropy(logits(5), torch.cat([LABELS, LABELS])))


def run_of(seed: int = 4) -> TrainingRun:
    return TrainingRun(untrained_model("resnet20", 4, (3, 16, 16), seed=3), make_images(40, classes=4), seed=seed)


def held(run: TrainingRun) -> object:
    return hold_out(run, PatchTrigger(1, 1, 4, 4), 8)


def test_branches_of_a_known_rate() -> None:
    run = run_of()
    rates = PrunedBranches(run, PruningOptions(rate=0.4), held(run))  # type: ignore[arg-type]
    state = run.generator.get_state()
    rates.draw()
    assert torch.equal(state, run.generator.get_state())
    assert len(rates.branches) == len(rates.ends) == 1
    images = run.images[:4].float() / 255
    run.module.eval()
    (branch,) = Branches(run.module, rates.branches)(images)
    pruned = prune(run.module, parse_pruning("prune-l1-filters-0.4"))
    torch.testing.assert_close(branch, pruned(images), rtol=1e-3, atol=1e-4)


def test_branches_of_an_unknown_rate() -> None:
    """Upper rates, drawn rates, lower rates, as in the released code."""
    run = run_of()
    rates = PrunedBranches(run, PruningOptions(rate=0.25, upper_rate=0.75), held(run))  # type: ignore[arg-type]
    assert len(rates.branches) == 3
    assert rates.ends == [rates.branches[0], rates.branches[2]]
    weight = torch.randn(16, 3, 3, 3)

    def gone(branch: Branch) -> list[int]:
        assert branch.weight is not None
        names = [name for name, layer in run.module.named_modules() if isinstance(layer, torch.nn.Conv2d)]
        return [int((branch.weight(name, weight).flatten(1).abs().sum(1) == 0).sum()) for name in names]

    assert set(gone(rates.branches[0])) == {12}
    assert set(gone(rates.branches[2])) == {4}
    rates.draw()
    first = gone(rates.branches[1])
    rates.draw()
    second = gone(rates.branches[1])
    assert all(4 <= count <= 12 for count in first + second)
    assert len(set(first)) > 1
    assert first != second


def test_searched_rates_differ_between_layers_and_keep_the_mean() -> None:
    run = run_of()
    rates = PrunedBranches(run, PruningOptions(layer_rates="searched"), held(run))  # type: ignore[arg-type]
    again = run_of()
    repeated = PrunedBranches(again, PruningOptions(layer_rates="searched"), held(again))  # type: ignore[arg-type]
    assert rates._low == repeated._low
    assert len(rates._low) == 19


def test_masks_follow_the_weights_and_pruned_filters_get_no_gradient() -> None:
    run = run_of()
    images = run.images[:4].float() / 255
    both = Branches(run.module.eval(), [FLOAT, Branch(pruned_filters(0.5))])  # shared statistics would couple them
    _, pruned = both(images)
    pruned.sum().backward()
    weight = run.module.get_parameter(next(name for name, p in run.module.named_parameters() if p.ndim == 4))
    zero = weight.grad.flatten(1).abs().sum(1) == 0
    smallest = weight.detach().abs().flatten(1).sum(1).argsort()[:8]
    assert zero[smallest].all()
    assert int(zero.sum()) == 8
    with torch.no_grad():
        weight.mul_((1 - 0.999 * (~zero).float())[:, None, None, None])  # the others are the smallest now
    weight.grad = None
    both(images)[1].sum().backward()
    assert torch.equal(weight.grad.flatten(1).abs().sum(1) == 0, ~zero)


def test_disagreement_ascends_and_changes_nothing() -> None:
    run = run_of()
    student = run.module.train()
    teacher = copy.deepcopy(student)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(1.1)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    images = run.images[:6].float() / 255
    moved = disagreement(student, teacher, images, 5, 0.01)
    assert student.training
    for name, tensor in student.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert all(parameter.grad is None for parameter in student.parameters())
    with torch.no_grad():
        student.eval(), teacher.eval()
        assert soft_cross_entropy(student(moved), teacher(moved)) > soft_cross_entropy(student(images), teacher(images))
    assert torch.equal(disagreement(student, teacher, images, 0, 0.01), images)


def test_options() -> None:
    names = [pruner.name for pruner in PruningArtifacts().compressors()]
    assert names == ["prune-l1-filters-0.3"]
    both = PruningArtifactsDistilled(upper_rate=0.5, layer_rates="searched").compressors()
    assert [pruner.name for pruner in both] == ["prune-l1-filters-searched-0.3", "prune-l1-filters-searched-0.5"]
    assert isinstance(gate_rule(PruningOptions()), GateRule)
    assert gate_rule(PruningOptions()).max_float_asr == 20.0
    for options in (
        {"rate": 1.0}, {"upper_rate": 0.2}, {"backdoor_share": 1.5}, {"layer_rates": "magic"}, {"norms": "none"},
        {"layer_rates": "searched"}, {"start_from": "moon"},
    ):  # fmt: skip
        with pytest.raises(UsageError):
            PruningArtifacts(**options)  # type: ignore[arg-type]
