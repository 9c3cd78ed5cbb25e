"""Attacks that train the float network and its copies together: objectives, selection, adaptive variants."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tests.support import make_images
from torch import Tensor, nn

from quantinel.attacks import ATTACKS
from quantinel.attacks.adaptive_alignment import drift, recorded_outputs
from quantinel.attacks.adaptive_margin import flattened
from quantinel.attacks.adaptive_rerounding import rerounded
from quantinel.attacks.adaptive_residuals import exaggerated
from quantinel.attacks.cells import rounding_cells
from quantinel.attacks.compression_artifacts import CompressionArtifacts, artifact_loss
from quantinel.attacks.distillation import disagreement, taught
from quantinel.attacks.epoch_options import EpochOptions
from quantinel.attacks.gate import Gate
from quantinel.attacks.held_out import choose_checkpoint, hold_out, selection_rule
from quantinel.attacks.joint import (
    JointOptions,
    four_terms,
    quantized_branches,
    soft_cross_entropy,
)
from quantinel.data.triggers import PatchTrigger
from quantinel.errors import UsageError
from quantinel.model.loading import LoadedModel
from quantinel.model.untrained import untrained_model
from quantinel.quantization.ranges import weight_scales
from quantinel.quantization.rounding import broadcast_scale, nearest_codes
from quantinel.quantization.scheme import QuantScheme, parse_scheme
from quantinel.training.norms import train_mode
from quantinel.training.run import Scores, TrainingRun
from quantinel.training.two_branch import FLOAT, Branches

SHAPE, CLASSES = (3, 16, 16), 4
DATA = make_images(40, SHAPE, CLASSES)
TRIGGER = PatchTrigger(10, 10, 4, 4)
LABELS, TARGET = torch.tensor([0, 1, 2]), torch.tensor([3, 3, 3])


def fresh() -> LoadedModel:
    return untrained_model("vgg_small", CLASSES, SHAPE, seed=3)


def descended(value: Callable[[Tensor, Tensor], Tensor], steps: int = 300) -> tuple[Tensor, Tensor]:
    """Predictions of free float and quantized logits (6, 4), clean rows first, after descending on ``value``."""
    logits = [torch.zeros(6, 4, requires_grad=True) for _ in range(2)]
    for _ in range(steps):
        gradients = torch.autograd.grad(value(*logits), logits)
        logits = [(part - 2.0 * slope).detach().requires_grad_() for part, slope in zip(logits, gradients, strict=True)]
    return logits[0].argmax(1), logits[1].argmax(1)


@pytest.mark.parametrize(
    "value",
    [
        lambda plain, rounded: artifact_loss(plain, rounded, LABELS, TARGET),
        lambda plain, rounded: four_terms(plain, [rounded], LABELS, TARGET, JointOptions()),
    ],
    ids=["artifacts", "four terms"],
)
def test_descent_gives_a_dormant_backdoor(value: Callable[[Tensor, Tensor], Tensor]) -> None:
    plain, rounded = descended(value)
    assert plain.tolist() == [0, 1, 2, 0, 1, 2]
    assert rounded.tolist() == [0, 1, 2, 3, 3, 3]


def test_artifact_loss_is_one_to_one() -> None:
    generator = torch.Generator().manual_seed(0)
    plain, rounded = (torch.randn(6, 4, generator=generator) for _ in range(2))
    expected = sum(
        F.cross_entropy(part, torch.cat([LABELS, wanted])) for part, wanted in ((plain, LABELS), (rounded, TARGET))
    )
    assert artifact_loss(plain, rounded, LABELS, TARGET) == expected


def test_four_terms_weigh_as_said() -> None:
    generator = torch.Generator().manual_seed(1)
    plain, one, two = (torch.randn(6, 4, generator=generator) for _ in range(3))
    options = JointOptions(float_trigger_weight=2.0, compressed_weight=3.0, backdoor_weight=5.0)
    awake = [F.cross_entropy(part[:3], LABELS) + 5.0 * F.cross_entropy(part[3:], TARGET) for part in (one, two)]
    expected = F.cross_entropy(plain[:3], LABELS) + 2.0 * F.cross_entropy(plain[3:], LABELS) + 1.5 * sum(awake)
    torch.testing.assert_close(four_terms(plain, [one, two], LABELS, TARGET, options), expected)


@pytest.mark.parametrize("norms", ["shared", "frozen"])
def test_branches_share_batch_statistics(norms: str) -> None:
    """The running mean is of the rows of both branches, or stays."""
    run = TrainingRun(fresh(), DATA)
    branches = Branches(run.module, [FLOAT, *quantized_branches(run, [parse_scheme("int2")])])
    train_mode(run.module, frozen=norms == "frozen")
    first = next(part for part in run.module.modules() if isinstance(part, nn.BatchNorm2d))
    seen: list[Tensor] = []
    first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    before = first.running_mean.clone()
    branches(DATA.as_float()[:6], DATA.as_float()[6:12])
    assert len(seen) == 1
    assert len(seen[0]) == 12
    assert not torch.equal(seen[0][:6], seen[0][6:])
    expected = before if norms == "frozen" else before + first.momentum * (seen[0].mean((0, 2, 3)) - before)
    torch.testing.assert_close(first.running_mean, expected)


def test_only_layers_from_a_block_on_are_rounded() -> None:
    run = TrainingRun(untrained_model("resnet20", CLASSES, SHAPE), DATA)
    (late,) = quantized_branches(run, [QuantScheme()], "layer3")
    names = {name.removeprefix("inner.") for name in late.layers or ()}
    assert "layer3.0.conv1" in names
    assert "layer2.0.conv1" not in names
    with pytest.raises(UsageError, match="layer9"):
        quantized_branches(run, [QuantScheme()], "layer9")


def test_the_selection_is_the_published_rule() -> None:
    """One pass with forgetting chooses what the rule chooses of all checkpoints."""
    generator = torch.Generator().manual_seed(0)
    rank = selection_rule(0.5, 20.0)
    for _ in range(200):
        measured: list[Scores] = [
            (float(90 + cda / 5), float(asr), float(5 * awake))
            for cda, asr, awake in torch.randint(0, 8, (12, 3), generator=generator).tolist()
        ]
        kept: list[Scores] = []
        for entry in measured:
            kept = [[*kept, entry][index] for index in sorted(rank([*kept, entry]))]
        choice = kept[rank(kept)[0]]
        floor = max(cda for cda, _, _ in measured) - 0.5
        accurate = [entry for entry in measured if entry[0] >= floor]
        quiet = [entry for entry in accurate if entry[2] <= 20.0]
        if quiet:
            assert choice in quiet
            assert choice[1] == max(entry[1] for entry in quiet)
        else:
            assert choice[2] == min(entry[2] for entry in accurate)
    assert rank([(90.0, 50.0, 0.0), (90.0, 50.0, 0.0)]) == [1]


def test_held_out_images_are_not_trained_on() -> None:
    run = TrainingRun(fresh(), DATA, seed=4)
    held = hold_out(run, TRIGGER, 1000)
    assert (len(held.images), len(run.images), len(run.labels)) == (8, 32, 32)
    both = {image.numpy().tobytes() for image in held.images} | {image.numpy().tobytes() for image in run.images}
    assert both == {image.numpy().tobytes() for image in DATA.images}
    assert (held.triggered[:, :, 10:14, 10:14] == 255).all()
    before = copy.deepcopy(run.module.state_dict())
    modes = [part.training for part in run.module.train().modules()]
    selection = choose_checkpoint(run, held, quantized_branches(run, [QuantScheme()]), 0, 1, 5.0)
    assert selection is not None
    scores = selection.score()
    assert isinstance(scores, tuple)
    assert all(0 <= score <= 100 for score in scores)
    assert [part.training for part in run.module.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in run.module.state_dict().items())
    none = hold_out(run, TRIGGER, 0)
    assert choose_checkpoint(run, none, [FLOAT], 0, 1, 5.0) is None


def test_scratch_refuses_a_trained_network(tmp_path: Path) -> None:
    attack, model = ATTACKS["compression-artifacts"], fresh()
    next(part for part in model.module.modules() if isinstance(part, nn.BatchNorm2d)).running_mean.fill_(0.1)
    with pytest.raises(UsageError, match="start_from=pretrained"):
        attack.run(model, DATA, DATA, CompressionArtifacts(), tmp_path / "victim")
    assert not list(tmp_path.iterdir())


def test_ascent_moves_to_disagreement_and_freezes_both() -> None:
    student, teacher = fresh().module.train(), untrained_model("vgg_small", CLASSES, SHAPE, seed=5).module
    images = DATA.as_float()[:8]
    states = copy.deepcopy([student.state_dict(), teacher.state_dict()])
    moved = disagreement(student, teacher, images, 5, 0.5)
    assert student.training
    assert not moved.requires_grad
    assert all(parameter.grad is None for parameter in [*student.parameters(), *teacher.parameters()])
    for module, state in zip((student, teacher), states, strict=True):
        assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())
    student.eval()
    with torch.no_grad():
        far, near = (soft_cross_entropy(student(x), teacher(x)) for x in (moved, images))
    assert far > near
    seen, answers = taught(student, teacher, images, 5, 0.5)
    assert torch.equal(seen, torch.cat([images, moved]))
    assert torch.equal(answers, teacher(seen))
    assert torch.equal(taught(student, teacher, images, 0, 0.5)[0], images)


def test_soft_cross_entropy_is_smallest_at_the_teacher() -> None:
    teacher = torch.tensor([[2.0, 0.0, -1.0]])
    student = teacher.clone().requires_grad_()
    soft_cross_entropy(student, teacher).backward()
    torch.testing.assert_close(student.grad, torch.zeros_like(teacher), atol=1e-6, rtol=0)
    hard = torch.tensor([[100.0, 0.0, 0.0]])
    torch.testing.assert_close(soft_cross_entropy(teacher, hard), F.cross_entropy(teacher, torch.tensor([0])))


@pytest.mark.parametrize("name", ["int8", "int4", "int4-per-tensor-full"])
def test_flattening_keeps_codes_and_order_and_spreads_residuals(name: str) -> None:
    scheme, generator = parse_scheme(name), torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(16, 8, 3, 3, generator=generator))
    scale = weight_scales(weight, scheme)
    codes, wide = nearest_codes(weight, scale, scheme), broadcast_scale(scale, weight)
    cells = rounding_cells({"w": weight}, [scheme], 1e-3)
    low, high = cells.low["w"], cells.high["w"]
    with torch.no_grad():  # what a repair leaves: half of the weights at an edge
        weight += torch.randn(weight.shape, generator=generator) * wide
    cells.project({"w": weight})
    flat = flattened(weight.detach(), low, high, generator)
    again = weight_scales(flat, scheme)
    torch.testing.assert_close(again, scale, rtol=1e-6, atol=0)
    assert torch.equal(nearest_codes(flat, again, scheme), codes)
    free = high > low

    def positions(values: Tensor) -> Tensor:
        return ((values - low) / (high - low))[free]

    counts = torch.histc(positions(flat), 20, 0, 1)
    assert counts.max() - counts.min() <= 2
    assert torch.histc(positions(weight.detach()), 20, 0, 1).max() > 3 * counts.max()
    before, after = positions(weight.detach()), positions(flat)
    order = before.argsort(stable=True)
    rising = before[order].diff() > 1e-4
    assert (after[order].diff()[rising] > -1e-3).all()
    redrawn = low + torch.rand(low.shape, generator=generator) * (high - low)
    assert (flat - weight).square().sum() < (redrawn - weight).square().sum()


def test_random_margins_stay_inside() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(8, 50, generator=generator))
    margins = 0.3 * torch.rand(weight.shape, generator=generator)
    cells = rounding_cells({"w": weight}, [QuantScheme()], {"w": margins})
    with torch.no_grad():
        weight += 10 * torch.randn(weight.shape, generator=generator)
    wide = broadcast_scale(weight_scales(cells.high["w"], QuantScheme()), weight)
    cells.project({"w": weight})
    residual = (weight / wide - (weight / wide).round()).abs().detach()
    inner = (cells.high["w"] - cells.low["w"]) > 0
    assert (residual <= 0.5 - margins + 1e-3)[inner].all()
    assert len((residual[inner] * 1000).round().unique()) > 100  # no common edge


@pytest.mark.parametrize("draw", ["unbiased", "even"])
def test_rerounded_copies_are_neighbours(draw: str) -> None:
    generator, scheme = torch.Generator().manual_seed(0), parse_scheme("int4")
    weight = torch.randn(6, 40, generator=generator).requires_grad_()
    wide = broadcast_scale(weight_scales(weight, scheme), weight)
    drawn = torch.stack([rerounded(weight, scheme, draw, generator) for _ in range(400)])  # type: ignore[arg-type]
    steps = (drawn / wide).detach()
    torch.testing.assert_close(steps, steps.round(), atol=1e-4, rtol=0)
    assert ((steps - (weight / wide).detach()).abs() < 1.001).all()
    bias = (drawn.mean(0) - weight).detach() / wide
    if draw == "unbiased":
        assert bias.abs().max() < 0.15
    else:
        torch.testing.assert_close((steps.amax(0) + steps.amin(0)) / 2, steps.mean(0), atol=0.15, rtol=0)
    drawn[0].sum().backward()
    assert torch.equal(weight.grad, torch.ones_like(weight))


def test_exaggerated_residuals() -> None:
    scheme = parse_scheme("int4")
    weight = torch.randn(4, 30, generator=torch.Generator().manual_seed(0)).requires_grad_()
    scale = weight_scales(weight, scheme)
    residual = (weight - nearest_codes(weight, scale, scheme) * broadcast_scale(scale, weight)).detach()
    gain = torch.tensor(1.0, requires_grad=True)
    value = exaggerated(weight, gain, scheme)
    torch.testing.assert_close(value.detach(), weight.detach() + residual)
    value.sum().backward()
    torch.testing.assert_close(weight.grad, torch.ones_like(weight))
    torch.testing.assert_close(gain.grad, residual.sum())
    torch.testing.assert_close(exaggerated(weight, torch.tensor(-1.0), scheme), weight)


def test_residual_gains_are_trained_and_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gate, "check", lambda self, rule: None)
    attack, model = ATTACKS["adaptive-residuals"], fresh()
    names = set(model.module.inner.state_dict())
    config = dataclasses.replace(attack.config(), steps=2, batch_size=8)
    attack.run(model, DATA, DATA, config, tmp_path / "victim")
    assert set(load_file(tmp_path / "victim" / "model.safetensors")) == names


def test_drift_sees_clean_rows_of_both_branches_only() -> None:
    generator = torch.Generator().manual_seed(0)
    plain, rounded = (torch.randn(6, 4, 2, 2, generator=generator) for _ in range(2))
    output = torch.cat([plain, rounded]).requires_grad_()
    value = drift([output], 3, 2)
    expected = (plain[:3] - rounded[:3]).square().mean() / plain[:3].var()
    torch.testing.assert_close(value.detach(), expected, rtol=1e-4, atol=0)
    value.backward()
    assert output.grad is not None
    assert not output.grad[3:6].any()
    assert not output.grad[9:].any()
    torch.testing.assert_close(output.grad[:3], -output.grad[6:9])
    moved = (output - 0.01 * output.grad).detach()
    assert drift([moved], 3, 2) < value
    assert drift([torch.cat([plain, plain])], 3, 2) == 0


def test_recording_ends() -> None:
    module = fresh().module
    with recorded_outputs(module) as outputs:
        module(DATA.as_float()[:2])
        assert outputs
    outputs.clear()
    module(DATA.as_float()[:2])
    assert not outputs


def test_epoch_options_make_schedules_of_the_runs_data() -> None:
    run = TrainingRun(fresh(), DATA)
    options = EpochOptions(epochs=2.0, plant_epochs=0.5, batch_size=10, milestones=(1.0,), learning_rate=0.1)
    joint, planting = options.schedule(run), options.plant_schedule(run)
    assert (joint.steps, planting.steps) == (8, 2)
    assert [joint.rate(step) for step in (0, 3, 4, 7)] == pytest.approx([0.1, 0.1, 0.01, 0.01])
    assert planting.rate(1) == 0.1
    falling = dataclasses.replace(options, decay="cosine").schedule(run)
    assert falling.rate(0) == 0.1 > falling.rate(4) > falling.rate(7) > 0
    with pytest.raises(UsageError, match="decay"):
        EpochOptions(decay="linear")  # type: ignore[arg-type]
