"""Options of the attacks that count their training in passes over the data: the four forms of Compression Artifacts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from quantinel.training.run import TrainingRun
from quantinel.training.schedule import Schedule, steps_of
from quantinel.validation import require_choice, require_non_negative, require_positive_integers

Norms = Literal["shared", "frozen"]
"""BatchNorm of a joint pass: one set of batch statistics for all branches, or the start's running statistics."""

Optimiser = Literal["sgd", "adam"]


@dataclass(frozen=True)
class EpochOptions:
    """Hyper-parameters that the forms share, with the published values as defaults.

    Attributes:
        target_class: answer of the awake backdoor (the authors: 1, 3, 5, 7 and 9).
        trigger: a published one by name ("pq" is the authors' too), or any in its JSON form.
        plant_epochs: passes over the data that first teach the float network the backdoor, at the same learning rate.
        epochs: passes over the data.
        learning_rate: at the start of both.
        decay: "multistep" (a tenth after each milestone, as published) or "cosine" (to 0, for short trainings).
        milestones: in epochs, of "multistep".
        momentum, weight_decay: of SGD.
        batch_size: clean images in a batch; as many triggered ones are added, for each branch.
        optimiser: "sgd", or "adam" for short trainings.
        norms: BatchNorm statistics of the batch, shared by the branches, or "frozen" ones.
        mirror: augment by mirroring.
        mixed_precision: run in bfloat16. It blurs 8-bit grids; at 4 bits a step is much wider than its rounding.
        held_out: training images that choose the checkpoint, at most a fifth; 0 keeps the last weights.
        max_float_asr: largest float ASR of a checkpoint, in percent, also at the gate (the authors: 20 on CIFAR, 10 on
            GTSRB).
    """

    target_class: int = 1
    trigger: str = "pq"
    plant_epochs: float = 0.0
    epochs: float = 35.0
    learning_rate: float = 0.1
    decay: Literal["multistep", "cosine"] = "multistep"
    milestones: tuple[float, ...] = (20.0,)
    momentum: float = 0.4
    weight_decay: float = 5e-4
    batch_size: int = 128
    optimiser: Optimiser = "sgd"
    norms: Norms = "shared"
    mirror: bool = True
    mixed_precision: bool = False
    held_out: int = 1000
    max_float_asr: float = 20.0

    def __post_init__(self) -> None:
        require_positive_integers(self, "batch_size")
        require_non_negative(
            self, "target_class", "plant_epochs", "epochs", "learning_rate", "momentum", "weight_decay", "held_out",
            "max_float_asr",
        )  # fmt: skip
        require_choice(self, "decay", ("multistep", "cosine"))
        require_choice(self, "norms", ("shared", "frozen"))
        require_choice(self, "optimiser", ("sgd", "adam"))

    def schedule(self, run: TrainingRun) -> Schedule:
        """Of the joint training, on the run's data."""
        images = len(run.images)
        return Schedule(
            steps_of(self.epochs, images, self.batch_size), self.learning_rate, self.momentum, self.weight_decay,
            self.batch_size, self.optimiser, self.decay,
            tuple(steps_of(milestone, images, self.batch_size) for milestone in self.milestones),
        )  # fmt: skip

    def plant_schedule(self, run: TrainingRun) -> Schedule:
        """Of the planting before it, at a constant rate."""
        return Schedule(
            steps_of(self.plant_epochs, len(run.images), self.batch_size), self.learning_rate, self.momentum,
            self.weight_decay, self.batch_size, self.optimiser, "constant",
        )  # fmt: skip
