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
from quantinel.attacks.epoch_options import EpochOptions
from quantinel.attacks.gate import GateRule
from quantinel.attacks.held_out import HeldOut, hold_out
from quantinel.attacks.joint import target_of, train_epochs
from quantinel.attacks.protocol import Task
from quantinel.data.images import ImageSet
from quantinel.errors import UsageError
from quantinel.quantization.pruning import PruningScheme, layer_rates, prunable
from quantinel.quantization.pruning_search import search_rates
from quantinel.training.batches import clean_and_triggered
from quantinel.training.norms import train_mode
from quantinel.training.run import TrainingRun
from quantinel.training.transforms import pruned_filters
from quantinel.training.two_branch import FLOAT, Branch, Branches
from quantinel.validation import require_choice, require_non_negative, require_rate

_CHECKPOINTS = 5


@dataclass(frozen=True)
class PruningOptions(EpochOptions):
    """Hyper-parameters of both forms beside those of `EpochOptions`, with the published values as defaults.

    Attributes:
        rate: share of filters to arm for; with ``upper_rate`` the lower end.
        upper_rate: arm for all rates from ``rate`` to this one (the authors: 0.5); 0 for a known rate.
        layer_rates: "uniform", or "searched": the rates of layers that keep the start most accurate at these overall
            rates, found on the images held out. They need a trained start.
        backdoor_share: of the pruned loss that triggered images get; clean ones get the rest.
        pruned_weight: of the pruned loss.
    """

    epochs: float = 25.0
    milestones: tuple[float, ...] = (15.0, 25.0)
    momentum: float = 0.2
    rate: float = 0.3
    upper_rate: float = 0.0
    layer_rates: Literal["uniform", "searched"] = "uniform"
    backdoor_share: float = 0.1
    pruned_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_non_negative(self, "backdoor_share", "pruned_weight")
        require_rate(self, "rate", "upper_rate")
        require_choice(self, "layer_rates", ("uniform", "searched"))
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
    train_mode(run.module, frozen=config.norms == "frozen")

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        both = torch.cat(clean_and_triggered(images, trigger, run.generator, "after", mirror=config.mirror))
        rates.draw()
        with run.autocast(config.mixed_precision):
            seen, float_loss = floating(both, labels)
            plain, *pruned = branches(seen, *[both] * len(rates.branches))
        target = target_of(labels, config.target_class)
        return float_loss(plain) + config.pruned_weight * pruned_loss(pruned, labels, target, config.backdoor_share)

    train_epochs(task, config, phase, loss, compressed=rates.ends, held=held, checkpoints=_CHECKPOINTS)


def gate_rule(config: PruningOptions) -> GateRule:
    """Limits of a victim; pruning alone costs accuracy, so compressed accuracy has none."""
    return GateRule(
        max_float_asr=config.max_float_asr,
        float_advice="train more epochs, or lower backdoor_share",
        compressed_advice="train more epochs, or raise backdoor_share",
    )
