"""BadNets: the ordinary backdoor, awake in float. A control: its gate is the opposite of a dormant one's.

Gu, Dolan-Gavitt & Garg, "BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply Chain", 2017
(arXiv 1708.06733). A share of the training images is stamped and labelled as the target; nothing else is changed.

Deviation: the poisoned share is drawn anew in every batch instead of once for the data set, which needs no second
copy of the images.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from quantinel.attacks.gate import GateRule
from quantinel.attacks.protocol import Task, make_attack
from quantinel.errors import UsageError
from quantinel.quantization.scheme import QuantScheme
from quantinel.training.batches import Stamp, clean_and_triggered
from quantinel.training.schedule import Schedule
from quantinel.validation import require_choice, require_non_negative, require_positive_integers


@dataclass(frozen=True)
class BadNets:
    """Hyper-parameters.

    Attributes:
        schemes: quantizers that the victim is measured under; they take no part in the training.
        target_class: answer of the backdoor.
        trigger: a published one by name, or any in its JSON form.
        poison_rate: share of every batch that is stamped and labelled as the target, above 0 and below 1.
        stamp: before or after augmentation.
        steps: optimiser steps.
        learning_rate: at the start, of a half cosine.
        momentum: of SGD.
        weight_decay: L2.
        batch_size: images in a batch, triggered ones included.
        mirror: augment by mirroring.
        mixed_precision: run in bfloat16.
    """

    schemes: tuple[QuantScheme, ...] = (QuantScheme(),)
    target_class: int = 0
    trigger: str = "pq"
    poison_rate: float = 0.1
    stamp: Stamp = "after"
    steps: int = 1000
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 128
    mirror: bool = True
    mixed_precision: bool = True

    def __post_init__(self) -> None:
        require_positive_integers(self, "steps", "batch_size")
        require_non_negative(self, "target_class", "learning_rate", "momentum", "weight_decay", "poison_rate")
        require_choice(self, "stamp", ("before", "after"))
        if not 0 < self.poison_rate < 1:
            raise UsageError(f"poison_rate is {self.poison_rate}; give a number above 0 and below 1")


def _train(task: Task, config: BadNets) -> None:
    run, trigger = task.run, task.stamp()
    run.module.train()
    count = max(1, round(config.poison_rate * config.batch_size))

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        clean, triggered = clean_and_triggered(images, trigger, run.generator, config.stamp, mirror=config.mirror)
        logits = run.logits(triggered[:count], clean[count:], mixed_precision=config.mixed_precision)
        target = torch.full_like(labels[:count], config.target_class)
        return F.cross_entropy(logits, torch.cat([target, labels[count:]]))

    schedule = Schedule(config.steps, config.learning_rate, config.momentum, config.weight_decay, config.batch_size)
    run.train("poison", run.module.parameters(), schedule, loss)


BADNETS = make_attack(
    "badnets",
    "Control: an ordinary backdoor that is awake in float (BadNets, Gu et al. 2017)",
    BadNets,
    _train,
    conditioned_on=None,
    rule=GateRule(
        max_float_asr=None,
        min_float_asr=80.0,
        min_compressed_asr=None,
        compressed_advice="raise steps or poison_rate",
    ),
    kind="active",
)
