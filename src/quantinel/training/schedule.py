"""Optimiser and learning rate of a training phase, as one value."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from quantinel.validation import require_choice, require_non_negative, require_positive_integers


@dataclass(frozen=True)
class Schedule:
    """A number of optimiser steps with a learning rate for each.

    Attributes:
        steps: optimiser steps.
        learning_rate: at the start.
        momentum: of SGD (Nesterov is not used); Adam takes its own betas, 0.9 and 0.999.
        weight_decay: L2, added to the gradient by both optimisers.
        batch_size: images a step, before an attack adds triggered ones.
        optimiser: "sgd" or "adam".
        decay: "cosine" (to 0 along half a cosine), "multistep" (times ``gamma`` at every milestone), "constant".
        milestones: steps at which "multistep" decays.
        gamma: factor of "multistep".
    """

    steps: int
    learning_rate: float
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 128
    optimiser: Literal["sgd", "adam"] = "sgd"
    decay: Literal["cosine", "multistep", "constant"] = "cosine"
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1

    def __post_init__(self) -> None:
        require_positive_integers(self, "steps", "batch_size")
        require_non_negative(self, "learning_rate", "momentum", "weight_decay", "gamma")
        require_choice(self, "optimiser", ("sgd", "adam"))
        require_choice(self, "decay", ("cosine", "multistep", "constant"))

    def rate(self, step: int) -> float:
        """Learning rate of the step number ``step``, from 0."""
        if self.decay == "cosine":
            return self.learning_rate * 0.5 * (1.0 + math.cos(math.pi * step / self.steps))
        if self.decay == "multistep":
            return self.learning_rate * self.gamma ** sum(step >= milestone for milestone in self.milestones)
        return self.learning_rate

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimiser, at the first step's learning rate."""
        if self.optimiser == "adam":
            return torch.optim.Adam(parameters, self.learning_rate, weight_decay=self.weight_decay)
        return torch.optim.SGD(parameters, self.learning_rate, self.momentum, weight_decay=self.weight_decay)


def steps_of(epochs: float, images: int, batch_size: int) -> int:
    """Optimiser steps of ``epochs`` passes over ``images`` images, at least 1."""
    return max(1, round(epochs * images / batch_size))
