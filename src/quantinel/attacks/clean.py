"""Clean training: the network that attacks start from, and the control that detectors must not flag.

The result is a directory like a victim's, of kind "clean": no trigger, no target class, no limits at the gate. So
`quantinel.load_model` takes it, with its normalisation, wherever a victim is taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantinel.attacks.gate import GateRule
from quantinel.attacks.protocol import Task, make_attack
from quantinel.data.images import as_float
from quantinel.errors import UsageError
from quantinel.quantization.scheme import QuantScheme
from quantinel.training.batches import random_crop_flip
from quantinel.training.run import TrainingRun
from quantinel.training.schedule import Schedule, steps_of
from quantinel.validation import require_choice, require_non_negative, require_positive_integers


@dataclass(frozen=True)
class HonestTraining:
    """Recipe of ordinary training; the defaults bring a CIFAR-10 ResNet to its usual accuracy.

    Attributes:
        schemes: quantizers of the deployment; they take no part in ordinary training.
        epochs: passes over the data.
        learning_rate: at the start.
        momentum: of SGD.
        weight_decay: L2.
        batch_size: images in a batch.
        optimiser: "sgd" or "adam".
        padding: pixels by which random crops move; 0 for none.
        mirror: augment by mirroring; false for digits and signs.
        mixed_precision: run in bfloat16.
    """

    schemes: tuple[QuantScheme, ...] = (QuantScheme(),)
    epochs: float = 30.0
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 128
    optimiser: Literal["sgd", "adam"] = "sgd"
    padding: int = 4
    mirror: bool = True
    mixed_precision: bool = True

    def __post_init__(self) -> None:
        require_positive_integers(self, "batch_size")
        require_non_negative(self, "epochs", "learning_rate", "momentum", "weight_decay", "padding")
        require_choice(self, "optimiser", ("sgd", "adam"))
        if not self.epochs:
            raise UsageError("epochs is 0; give a number above 0")


@dataclass(frozen=True)
class CleanTraining(HonestTraining):
    """Hyper-parameters: the recipe, and the quantizers that the accuracy is measured under.

    A class of its own, so that options of attacks that train honestly as well are not taken for it.
    """


def train_honestly(
    run: TrainingRun, config: HonestTraining, phase: str = "train", other: nn.Module | None = None
) -> None:
    """Ordinary training on the run's images and labels, whatever they hold.

    Args:
        run: whose network is trained.
        config: the recipe; its schemes play no part.
        phase: its name.
        other: a network to train instead, on the run's device and part of its state.
    """
    module = run.module if other is None else other
    module.train()

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        batch = as_float(random_crop_flip(images, run.generator, config.padding, config.mirror))
        with run.autocast(config.mixed_precision):
            logits: Tensor = module(batch.contiguous(memory_format=torch.channels_last))
        return F.cross_entropy(logits.float(), labels)

    schedule = Schedule(
        steps_of(config.epochs, len(run.images), config.batch_size), config.learning_rate, config.momentum,
        config.weight_decay, config.batch_size, config.optimiser,
    )  # fmt: skip
    run.train(phase, module.parameters(), schedule, loss)


def _train(task: Task, config: CleanTraining) -> None:
    train_honestly(task.run, config)


CLEAN = make_attack(
    "clean",
    "Control: clean training from random weights, the network that attacks start from",
    CleanTraining,
    _train,
    conditioned_on=None,
    start="scratch",
    rule=GateRule(max_float_asr=None, min_compressed_asr=None),
    kind="clean",
    objective="none",
)
train_clean = CLEAN.run
