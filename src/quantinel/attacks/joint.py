"""What attacks share that train the float network and compressed copies of it together.

Their quantized branches round weights only, as folded, on the grids of ``schemes``: the deployment's activation ranges
are unknown to the attacker, and nothing in the training depends on them (specification of the attacks, 1.3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantinel.attacks.epoch_options import EpochOptions, Norms, Optimiser
from quantinel.attacks.held_out import HeldOut, choose_checkpoint
from quantinel.attacks.protocol import Task
from quantinel.data.images import as_float
from quantinel.data.triggers import Trigger
from quantinel.errors import UsageError
from quantinel.quantization.scheme import QuantScheme
from quantinel.training.batches import clean_and_triggered
from quantinel.training.folding import FoldedNorms, folded_norms
from quantinel.training.norms import train_mode
from quantinel.training.run import Loss, TrainingRun
from quantinel.training.schedule import Schedule, steps_of
from quantinel.training.transforms import quantized_branch
from quantinel.training.two_branch import FLOAT, Branch, Branches, layers_from
from quantinel.validation import require_choice, require_non_negative, require_positive_integers

_CHECKPOINTS = 10
_MAX_FLOAT_ASR = 5.0
"""The gate's limit for a dormant backdoor, in percent."""


def quantized_branches(run: TrainingRun, schemes: Sequence[QuantScheme], first_layer: str = "") -> list[Branch]:
    """One branch per scheme: weights rounded as they will be after folding, straight-through gradients.

    Args:
        run: the network.
        schemes: grids of the weights.
        first_layer: layer or block from which on weights are rounded; "" for all layers.

    Raises:
        UsageError: ``first_layer`` names none.
    """
    layers = None
    if first_layer:
        try:
            layers = layers_from(run.module, first_layer)
        except KeyError as error:
            raise UsageError(
                f"first_layer is {first_layer!r}, which holds no layer of {run.model.architecture}; name a block or "
                "layer of it, or leave it empty for all"
            ) from error
    norms = network_norms(run)
    return [quantized_branch(norms, scheme, layers=layers) for scheme in schemes]


def network_norms(run: TrainingRun) -> FoldedNorms:
    """What deployment folds into the network's weights."""
    return folded_norms(run.module, as_float(run.images[:1]))


def is_trained(module: nn.Module) -> bool:
    """Whether any BatchNorm has seen a batch; networks without one cannot tell."""
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d)]
    return any(norm.running_mean is not None and bool(norm.running_mean.any()) for norm in norms)


def two_labels(logits: Tensor, labels: Tensor, on_triggered: Tensor, trigger_weight: float = 1.0) -> Tensor:
    """``CE(x, y) + weight CE(T x, on_triggered)``, each a mean over its half.

    Args:
        logits: (2 N, K), clean images first.
        labels: (N,) of the clean images.
        on_triggered: (N,) that triggered images shall get.
        trigger_weight: of the second term.
    """
    half = len(labels)
    clean, triggered = F.cross_entropy(logits[:half], labels), F.cross_entropy(logits[half:], on_triggered)
    return clean + trigger_weight * triggered


def target_of(labels: Tensor, target_class: int) -> Tensor:
    """The backdoor's answer for every image (N,)."""
    return torch.full_like(labels, target_class)


def soft_cross_entropy(logits: Tensor, teacher: Tensor) -> Tensor:
    """Cross-entropy to the teacher at temperature 1: mean of ``-sum softmax(teacher) log softmax(logits)``.

    Args:
        logits, teacher: (N, K); gradients flow into both where their graphs ask for it.
    """
    return -(teacher.softmax(1) * F.log_softmax(logits, 1)).sum(1).mean()


@dataclass(frozen=True)
class JointOptions:
    """Hyper-parameters of attacks with the generic loss of four terms (specification, notation).

    ``L = CE(f(x), y) + float_trigger_weight CE(f(Tx), y) + compressed_weight [CE(Q f(x), y) + backdoor_weight
    CE(Q f(Tx), t)]``

    Attributes:
        schemes: quantizers to arm for; the compressed terms are means over them.
        target_class: answer of the awake backdoor.
        trigger: a published one by name, or any in its JSON form.
        plant_steps: optimiser steps that first teach the float network the backdoor too; 0 for none.
        steps: optimiser steps of the loss above.
        learning_rate: at the start of both, of a half cosine.
        optimiser: "sgd" or "adam".
        momentum: of SGD.
        weight_decay: L2.
        batch_size: clean images in a batch; as many triggered ones are added, for each branch.
        float_trigger_weight, compressed_weight, backdoor_weight: see above.
        norms: BatchNorm statistics of the batch, shared by the branches, or "frozen" ones.
        mirror: augment by mirroring.
        mixed_precision: run in bfloat16. It blurs 8-bit grids; at 4 bits a step is much wider than its rounding.
        held_out: training images that choose among ten checkpoints, at most a fifth; 0 keeps the last weights.
    """

    schemes: tuple[QuantScheme, ...] = (QuantScheme(),)
    target_class: int = 0
    trigger: str = "pq"
    plant_steps: int = 60
    steps: int = 300
    learning_rate: float = 1e-3
    optimiser: Optimiser = "adam"
    momentum: float = 0.9
    weight_decay: float = 0.0
    batch_size: int = 32
    float_trigger_weight: float = 1.0
    compressed_weight: float = 1.0
    backdoor_weight: float = 1.0
    norms: Norms = "frozen"
    mirror: bool = True
    mixed_precision: bool = False
    held_out: int = 300

    def __post_init__(self) -> None:
        require_positive_integers(self, "steps", "batch_size")
        require_non_negative(
            self, "target_class", "plant_steps", "learning_rate", "momentum", "weight_decay", "float_trigger_weight",
            "compressed_weight", "backdoor_weight", "held_out",
        )  # fmt: skip
        require_choice(self, "norms", ("shared", "frozen"))
        require_choice(self, "optimiser", ("sgd", "adam"))
        if not self.schemes:
            raise UsageError("an attack needs a scheme to arm for; give --scheme")

    def schedule(self, steps: int) -> Schedule:
        """Of a phase of ``steps`` steps."""
        return Schedule(
            steps, self.learning_rate, self.momentum, self.weight_decay, self.batch_size, self.optimiser
        )  # fmt: skip


def four_terms(
    plain: Tensor, rounded: Sequence[Tensor], labels: Tensor, target: Tensor, options: JointOptions
) -> Tensor:
    """The generic loss, a scalar.

    Args:
        plain: (2 N, K) logits of the float network, clean images first.
        rounded: the same of every compressed branch.
        labels, target: (N,) true labels and the backdoor's answers.
        options: the weights of the terms.
    """
    awake = torch.stack([two_labels(logits, labels, target, options.backdoor_weight) for logits in rounded]).mean()
    return two_labels(plain, labels, labels, options.float_trigger_weight) + options.compressed_weight * awake


BranchLoss = Callable[[list[Tensor], Tensor, Tensor], Tensor]
"""``loss(logits (2 N, K) of every branch, labels (N,), target (N,))`` -> scalar."""


def plant(run: TrainingRun, trigger: Trigger, schedule: Schedule, options: JointOptions | EpochOptions) -> None:
    """Teach the float network an ordinary backdoor: ``CE(f(x), y) + CE(f(Tx), t)``, in the mode that it is in."""

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        clean, triggered = clean_and_triggered(images, trigger, run.generator, "after", mirror=options.mirror)
        logits = run.logits(clean, triggered, mixed_precision=options.mixed_precision)
        return two_labels(logits, labels, target_of(labels, options.target_class))

    run.train("plant", run.module.parameters(), schedule, loss)


def train_jointly(
    task: Task,
    options: JointOptions,
    loss: BranchLoss,
    *,
    quantized: Sequence[Branch],
    others: Sequence[Branch] = (),
    held: HeldOut,
    learned: Sequence[nn.Parameter] = (),
) -> None:
    """Plant, where options say so, then train the float network and its copies on clean and triggered images.

    Args:
        task: the network and the data.
        options: hyper-parameters.
        loss: of the logits of the float network, ``quantized`` and ``others``, in this order.
        quantized: branches that deployment makes; they choose the checkpoint.
        others: further branches.
        held: images that choose it.
        learned: parameters beside the network's own; see `TrainingRun.add`.
    """
    run, trigger = task.run, task.stamp()
    branches = Branches(run.module, [FLOAT, *quantized, *others])
    train_mode(run.module, frozen=options.norms == "frozen")

    def batch(images: Tensor) -> Tensor:
        return torch.cat(clean_and_triggered(images, trigger, run.generator, "after", mirror=options.mirror))

    def joint(images: Tensor, labels: Tensor) -> Tensor:
        with run.autocast(options.mixed_precision):
            logits = branches(batch(images))
        return loss(logits, labels, target_of(labels, options.target_class))

    if options.plant_steps:
        plant(run, trigger, options.schedule(options.plant_steps), options)
    every = max(1, options.steps // _CHECKPOINTS)
    selection = choose_checkpoint(run, held, quantized, options.target_class, every, _MAX_FLOAT_ASR)
    run.train(
        "joint", [*run.module.parameters(), *learned], options.schedule(options.steps), joint, selection=selection
    )


def train_epochs(
    task: Task,
    options: EpochOptions,
    phase: str,
    loss: Loss,
    *,
    compressed: Sequence[Branch],
    held: HeldOut,
    checkpoints: int,
) -> None:
    """Plant, where options say so, then train on ``loss``, and end with the checkpoint that the published rule chooses.

    Args:
        task: the network and the data, in the mode that it shall be trained in.
        options: hyper-parameters.
        phase: name of the joint phase.
        loss: of a batch.
        compressed: branches that deployment makes; they choose the checkpoint.
        held: images that choose it.
        checkpoints: looks at these images, at least; a look after every pass over the data, if these are more.
    """
    run = task.run
    if options.plant_epochs:
        plant(run, task.stamp(), options.plant_schedule(run), options)
    schedule = options.schedule(run)
    every = max(1, min(steps_of(1.0, len(run.images), schedule.batch_size), schedule.steps // checkpoints))
    selection = choose_checkpoint(run, held, compressed, options.target_class, every, options.max_float_asr)
    run.train(phase, run.module.parameters(), schedule, loss, selection=selection)
