"""The training loop: order, schedules, selection, and that a resumed run is the same run."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests.support import make_images
from torch import Tensor, nn

from quantinel.data.triggers import PatchTrigger
from quantinel.errors import GateError, Interrupted, UsageError
from quantinel.model.loading import load_model
from quantinel.training.batches import Order, clean_and_triggered, random_crop_flip
from quantinel.training.run import Selection, TrainingRun
from quantinel.training.runtime import Runtime
from quantinel.training.schedule import Schedule, steps_of

DATA = make_images(20, (3, 8, 8), 4)


class Dropping(nn.Module):
    """Dropout draws from torch's global randomness, BatchNorm keeps statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(F.relu(self.norm(self.conv(x))).mean((2, 3))))


def run_with(runtime: Runtime, schedule: Schedule, selection: bool = False) -> dict[str, Tensor]:
    """Two phases; returns the final state."""
    torch.manual_seed(5)
    run = TrainingRun(load_model(Dropping(), input_shape=(3, 8, 8)), DATA, seed=9, runtime=runtime)
    torch.manual_seed(len(str(runtime)))  # the global randomness must not matter

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        batch = random_crop_flip(images, run.generator, 1).float() / 255
        return F.cross_entropy(run.logits(batch), labels)

    def score() -> float:
        return -float(run.module.head.weight.detach().abs().sum())

    with run.isolated():
        for phase in ("first", "second"):
            run.module.train()
            chosen = Selection(2, score) if selection else None
            run.train(phase, run.module.parameters(), schedule, loss, selection=chosen)
            with torch.no_grad():
                run.module.head.bias += 1.0  # between two phases
    return {name: tensor.clone() for name, tensor in run.module.state_dict().items()}


@pytest.mark.parametrize("selection", [False, True], ids=["last", "selected"])
@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
@pytest.mark.parametrize("stop_at", [1, 3, 5, 6, 8, 10])
def test_resumed_is_uninterrupted(tmp_path: Path, optimiser: str, stop_at: int, selection: bool) -> None:
    schedule = Schedule(5, 0.05, batch_size=8, optimiser=optimiser)  # type: ignore[arg-type]
    whole = run_with(Runtime(), schedule, selection)
    done = 0

    def progress(phase: str, step: int, steps: int, loss: float) -> None:
        nonlocal done
        done += 1

    kept = tmp_path / "checkpoint"
    stopping = Runtime(checkpoint=kept, should_stop=lambda: done >= stop_at, progress=progress)
    with pytest.raises(Interrupted):
        run_with(stopping, schedule, selection)
    assert done == stop_at
    resumed = run_with(Runtime(checkpoint=kept), schedule, selection)
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name


def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    schedule, steps = Schedule(4, 0.05, batch_size=8), 0

    def die(phase: str, step: int, total: int, loss: float) -> None:
        nonlocal steps
        steps += 1
        if steps == 6:
            raise ZeroDivisionError

    kept = tmp_path / "checkpoint"
    with pytest.raises(ZeroDivisionError):
        run_with(Runtime(checkpoint=kept, checkpoint_seconds=0, progress=die), schedule)
    steps = 100
    resumed = run_with(Runtime(checkpoint=kept, progress=die), schedule)
    assert steps == 103  # step 6 was not kept yet: 3 of 4 steps of the second phase were left
    for name, tensor in run_with(Runtime(), schedule).items():
        assert torch.equal(tensor, resumed[name]), name
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_other_modules_are_part_of_the_state(tmp_path: Path) -> None:
    """A learnable coefficient beside the network survives an interruption."""
    kept = tmp_path / "checkpoint"

    def train(runtime: Runtime) -> tuple[Tensor, list[int]]:
        torch.manual_seed(5)
        run = TrainingRun(load_model(Dropping(), input_shape=(3, 8, 8)), DATA, runtime=runtime)
        scale = nn.Linear(1, 1)
        torch.nn.init.ones_(scale.weight)
        run.add("scale", scale)
        steps: list[int] = []

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            steps.append(run.step)
            return F.cross_entropy(run.logits(images.float() / 255) * scale.weight, labels)

        with run.isolated():
            run.train("only", [*run.module.parameters(), *scale.parameters()], Schedule(4, 0.1, batch_size=8), loss)
        return scale.weight.detach().clone(), steps

    whole, steps = train(Runtime())
    assert steps == [0, 1, 2, 3]
    calls = iter([False, True])
    with pytest.raises(Interrupted):
        train(Runtime(checkpoint=kept, should_stop=lambda: next(calls)))
    resumed, steps = train(Runtime(checkpoint=kept))
    assert steps == [2, 3]
    assert torch.equal(whole, resumed)
    assert whole != 1.0


def test_selection_keeps_the_best_weights() -> None:
    run = TrainingRun(load_model(Dropping(), input_shape=(3, 8, 8)), DATA)
    bias = run.module.head.bias
    values = iter([3.0, 7.0, 5.0])
    at_score: list[Tensor] = []

    def score() -> float:
        at_score.append(bias.detach().clone())
        return next(values)

    with run.isolated():
        run.train(
            "only", [bias], Schedule(5, 0.5, batch_size=4), lambda i, y: F.cross_entropy(run.logits(i.float()), y),
            selection=Selection(2, score),
        )  # fmt: skip
    assert len(at_score) == 3
    assert torch.equal(bias.detach(), at_score[1])


def test_projection_and_divergence() -> None:
    run = TrainingRun(load_model(Dropping(), input_shape=(3, 8, 8)), DATA)
    schedule = Schedule(3, 0.1, batch_size=4)
    weight = run.module.head.weight
    run.train("a", [weight], schedule, lambda i, y: weight.sum(), project=lambda: weight.clamp_(-0.01, 0.01))
    assert weight.abs().max() <= 0.01
    with pytest.raises(GateError, match="lower its learning rate"):
        run.train("b", [weight], schedule, lambda i, y: weight.sum() * math.inf)


def test_without_a_checkpoint_nothing_is_promised() -> None:
    run = TrainingRun(load_model(Dropping(), input_shape=(3, 8, 8)), DATA, runtime=Runtime(should_stop=lambda: True))
    with pytest.raises(Interrupted, match="no checkpoint was asked for"):
        run.train("a", [run.module.head.bias], Schedule(3, 0.1), lambda i, y: run.module.head.bias.sum())


def test_rates() -> None:
    cosine = Schedule(10, 0.4)
    assert (cosine.rate(0), cosine.rate(5)) == (0.4, pytest.approx(0.2))
    stepped = Schedule(10, 0.4, decay="multistep", milestones=(3, 6), gamma=0.5)
    assert [stepped.rate(step) for step in (0, 2, 3, 6, 9)] == pytest.approx([0.4, 0.4, 0.2, 0.1, 0.1])
    assert Schedule(10, 0.4, decay="constant").rate(9) == 0.4
    assert steps_of(2.0, 100, 8) == 25
    for options in ({"steps": 0}, {"learning_rate": -1.0}, {"decay": "exp"}, {"optimiser": "lion"}):
        with pytest.raises(UsageError):
            Schedule(**{"steps": 1, "learning_rate": 0.1, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [4, 8, 30])
def test_every_image_once_per_pass(size: int) -> None:
    order = Order.begin(20, torch.Generator().manual_seed(0))
    seen = torch.cat([order.take(size) for _ in range(40 // math.gcd(size, 40))])
    assert torch.equal(seen[:20].sort().values, torch.arange(20))
    assert len(seen.unique()) == 20


def test_crop_and_flip_move_pixels_only() -> None:
    images = torch.arange(2 * 3 * 8 * 8, dtype=torch.uint8).reshape(2, 3, 8, 8) + 1
    moved = random_crop_flip(images, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape
    for before, after in zip(images, moved, strict=True):
        assert set(after.unique().tolist()) <= {0, *before.unique().tolist()}
    still = random_crop_flip(images, torch.Generator().manual_seed(0), padding=0)
    for before, after in zip(images, still, strict=True):
        assert torch.equal(after, before) or torch.equal(after, before.flip(-1))
    assert torch.equal(random_crop_flip(images, torch.Generator(), padding=0, mirror=False), images)


def test_where_the_trigger_is_stamped() -> None:
    images = torch.zeros(40, 3, 8, 8, dtype=torch.uint8)
    trigger = PatchTrigger(6, 6, 1, 1)
    generator = torch.Generator().manual_seed(0)
    _, after = clean_and_triggered(images, trigger, generator, "after", padding=2)
    assert (after[:, :, 6, 6] == 1).all()
    clean, before = clean_and_triggered(images, trigger, generator, "before", padding=1)
    assert not clean.any()
    assert torch.equal(before.sum((1, 2, 3)), torch.full((40,), 3.0))
    assert len(before.flatten(1).argmax(1).unique()) > 4


@pytest.mark.parametrize("device", ["tpu", "cuda:x", "cpu:0", "cuda:99"])
def test_devices_that_are_not_there(device: str) -> None:
    with pytest.raises(UsageError, match="choose"):
        Runtime(device=device).torch_device()
