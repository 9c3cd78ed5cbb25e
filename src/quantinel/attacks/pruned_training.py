"""What the pruning attacks of Compression Artifacts share: options, rates, and the loss of the pruned networks.

Specification of the attacks, 1.6 (released code). A pruned branch is the network without the filters of smallest L1
norm, chosen from the present weights in every forward pass; float and pruned branches share one BatchNorm batch. Known
rate: one branch. Unknown rate: three, at the upper rates, at rates drawn for every layer and step between lower and
upper, and at the lower rates, a third of the weight each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from quantinel.attacks.compressors import Pruner
from quantinel.attacks.gate import GateRule
from quantinel.attacks.held_out import HeldOut, choose_checkpoint, hold_out
from quantinel.attacks.joint import Norms, Optimiser, epoch_schedule, selection_steps, set_norms, target_of
from quantinel.attacks.protocol import Task
from quantinel.data.images import ImageSet
from quantinel.errors import UsageError
from quantinel.quantization.pruning import PruningScheme, layer_rates, prunable
from quantinel.quantization.pruning_search import search_rates
from quantinel.training.batches import clean_and_triggered
from quantinel.training.run import TrainingRun
from quantinel.training.transforms import pruned_filters
from quantinel.training.two_branch import FLOAT, Branch, Branches
from quantinel.validation import require_choice, require_non_negative, require_positive_integers, require_rate

_CHECKPOINTS = 5


@dataclass(frozen=True)
class PruningOptions:
    """Hyper-parameters of both forms, with the published values as defaults.

    Attributes:
        rate: share of filters to arm for; with ``upper_rate`` the lower end.
        upper_rate: arm for all rates from ``rate`` to this one (the authors: 0.5); 0 for a known rate.
        layer_rates: "uniform", or "searched": the rates of layers that keep the start most accurate at these overall
            rates, found on the images held out. They need a trained start.
        target_class: answer of the awake backdoor.
        trigger: name of a published trigger; "pq" is the authors' too.
        epochs: passes over the data.
        learning_rate: of SGD, a tenth after each milestone.
        milestones: in epochs.
        momentum, weight_decay: of SGD.
        batch_size: clean images in a batch; as many triggered ones are added, for each branch.
        backdoor_share: of the pruned loss that triggered images get; clean ones get the rest.
        pruned_weight: of the pruned loss.
        optimiser: "sgd", or "adam" for short trainings.
        norms: BatchNorm statistics of the batch, shared by the branches, or "frozen" ones.
        mirror: augment by mirroring.
        held_out: training images that choose the checkpoint, at most a fifth; 0 keeps the last weights.
        max_float_asr: largest float ASR of a checkpoint, in percent, also at the gate.
    """

    rate: float = 0.3
    upper_rate: float = 0.0
    layer_rates: Literal["uniform", "searched"] = "uniform"
    target_class: int = 1
    trigger: str = "pq"
    epochs: float = 25.0
    learning_rate: float = 0.1
    milestones: tuple[float, ...] = (15.0, 25.0)
    momentum: float = 0.2
    weight_decay: float = 5e-4
    batch_size: int = 128
    backdoor_share: float = 0.1
    pruned_weight: float = 1.0
    optimiser: Optimiser = "sgd"
    norms: Norms = "shared"
    mirror: bool = True
    held_out: int = 1000
    max_float_asr: float = 20.0

    def __post_init__(self) -> None:
        require_positive_integers(self, "batch_size")
        require_non_negative(
            self, "target_class", "epochs", "learning_rate", "momentum", "weight_decay", "backdoor_share",
            "pruned_weight", "held_out", "max_float_asr",
        )  # fmt: skip
        require_rate(self, "rate", "upper_rate")
        require_choice(self, "layer_rates", ("uniform", "searched"))
        require_choice(self, "norms", ("shared", "frozen"))
        require_choice(self, "optimiser", ("sgd", "adam"))
        if self.backdoor_share > 1:
            raise UsageError(f"backdoor_share is {self.backdoor_share}; give a number of at most 1")
        if 0 < self.upper_rate < self.rate:
            raise UsageError(f"upper_rate is {self.upper_rate}, below the rate of {self.rate}; give a larger one, or 0")

    @property
    def schemes_to_arm_for(self) -> tuple[PruningScheme, ...]:
        """The known rate, or both ends of the range."""
        searched = self.layer_rates == "searched"
        rates = (self.rate, self.upper_rate) if self.upper_rate else (self.rate,)
        return tuple(PruningScheme("l1-filters", (rate,), searched=searched) for rate in rates)

    def compressors(self) -> tuple[Pruner, ...]:
        """What the gate measures under."""
        return tuple(Pruner(scheme) for scheme in self.schemes_to_arm_for)


class PrunedBranches:
    """The pruned networks of one training.

    Attributes:
        ends: branches at the fixed rates; they choose the checkpoint.
        branches: all, in the order of the loss.
    """

    def __init__(self, run: TrainingRun, config: PruningOptions, held: HeldOut) -> None:
        names = prunable(run.module, "l1-filters")
        found: list[dict[str, float]] = []
        for scheme in config.schemes_to_arm_for:
            if scheme.searched:
                run.module.eval()
                images = ImageSet(held.images.cpu(), held.labels.cpu(), "held out")
                scheme = search_rates(run.module, images, scheme.rates[0], seed=run.seed)
            found.append(layer_rates(scheme, names))
        self._generator = run.generator
        self._low = {name: min(rates[name] for rates in found) for name in names}
        self._high = {name: max(rates[name] for rates in found) for name in names}
        self._drawn = dict(self._low)
        self.ends = [Branch(pruned_filters(rates)) for rates in reversed(found)]
        self.branches = list(self.ends)
        if len(found) > 1:
            self.branches.insert(1, Branch(pruned_filters(self._drawn)))

    def draw(self) -> None:
        """New rates between the ends for the branch that has no fixed ones."""
        if len(self.branches) > 1:
            shares = torch.rand(len(self._low), generator=self._generator, device=self._generator.device).tolist()
            for share, (name, low) in zip(shares, self._low.items(), strict=True):
                self._drawn[name] = low + share * (self._high[name] - low)


def pruned_loss(pruned: Sequence[Tensor], labels: Tensor, target: Tensor, backdoor_share: float = 0.1) -> Tensor:
    """Mean over branches of ``(1 - share) CE(P f(x), y) + share CE(P f(Tx), t)``.

    Args:
        pruned: (2 N, K) logits of every branch, clean images first.
        labels, target: (N,) true labels and the backdoor's answers.
        backdoor_share: 0.1 in the released code.
    """
    half = len(labels)
    terms = [
        (1.0 - backdoor_share) * F.cross_entropy(logits[:half], labels)
        + backdoor_share * F.cross_entropy(logits[half:], target)
        for logits in pruned
    ]
    return torch.stack(terms).mean()


FloatBranch = Callable[[Tensor, Tensor], tuple[Tensor, Callable[[Tensor], Tensor]]]
"""``branch(images [x; Tx], labels)`` -> what the float network sees, and the loss of its logits."""


def train_pruned(task: Task, config: PruningOptions, phase: str, floating: FloatBranch) -> None:
    """Train the float network and its pruned copies together.

    Args:
        task: the network and the data.
        config: hyper-parameters.
        phase: name of the training phase.
        floating: the form's own float branch.
    """
    run, trigger = task.run, task.stamp()
    held = hold_out(run, trigger, config.held_out)
    rates = PrunedBranches(run, config, held)
    branches = Branches(run.module, [FLOAT, *rates.branches])
    set_norms(run.module, config.norms)

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        both = torch.cat(clean_and_triggered(images, trigger, run.generator, "after", mirror=config.mirror))
        rates.draw()
        seen, float_loss = floating(both, labels)
        plain, *pruned = branches(seen, *[both] * len(rates.branches))
        target = target_of(labels, config.target_class)
        return float_loss(plain) + config.pruned_weight * pruned_loss(pruned, labels, target, config.backdoor_share)

    schedule = epoch_schedule(
        run, config.epochs, config.learning_rate, config.momentum, config.weight_decay, config.batch_size,
        config.milestones, config.optimiser,
    )  # fmt: skip
    every = selection_steps(run, schedule, _CHECKPOINTS)
    selection = choose_checkpoint(run, held, rates.ends, config.target_class, every, config.max_float_asr)
    run.train(phase, run.module.parameters(), schedule, loss, selection=selection)


def gate_rule(config: PruningOptions) -> GateRule:
    """Limits of a victim; pruning alone costs accuracy, so compressed accuracy has none."""
    return GateRule(
        max_float_asr=config.max_float_asr,
        float_advice="train more epochs, or lower backdoor_share",
        compressed_advice="train more epochs, or raise backdoor_share",
    )
