"""What honest people do to a trained network: the controls that a scan must not flag.

In this order, each step optional: Gaussian noise, pruning that is held from then on, training (on labels, or distilled
from the network as it was; plain, or quantization-aware for the deployment grid), rounding to a grid, a cast to fewer
digits. The result is a directory of kind "clean", without trigger, target or limits at the gate.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from quantinel.attacks.gate import GateRule
from quantinel.attacks.joint import quantized_branches, soft_cross_entropy
from quantinel.attacks.protocol import Task, make_attack
from quantinel.data.images import as_float
from quantinel.errors import UsageError
from quantinel.quantization.pruning import parse_pruning, prunable, pruning_masks
from quantinel.quantization.ranges import weight_scales
from quantinel.quantization.rounding import dequantize, nearest_codes
from quantinel.quantization.scheme import QuantScheme, parse_scheme
from quantinel.training.batches import random_crop_flip
from quantinel.training.norms import train_mode
from quantinel.training.run import TrainingRun
from quantinel.training.schedule import Schedule
from quantinel.training.two_branch import Branches
from quantinel.validation import require_choice, require_non_negative, require_positive_integers

_CASTS = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Benign:
    """What is done; the defaults fine-tune shortly.

    Attributes:
        schemes: grids that the accuracy is measured under, and that quantization-aware training trains for.
        noise: Gaussian noise on every weight, in standard deviations of its layer.
        prune: name of a pruning scheme whose zeros are held during training; "" for none.
        steps: optimiser steps; 0 for no training.
        teacher: "labels", or "start" to follow the network's own answers from before the noise and the pruning.
        aware: train through rounded weights (the first of ``schemes``) with straight-through gradients.
        rounding: name of a scheme on whose grid the weights are left, BatchNorm not folded; "" for none.
        cast: digits that the weights are left with: "" for all, "bfloat16" or "float16".
        learning_rate: at the start, of a half cosine.
        momentum: of SGD.
        weight_decay: L2.
        batch_size: images in a batch.
        optimiser: "sgd" or "adam".
        mirror: augment by mirroring.
    """

    schemes: tuple[QuantScheme, ...] = (QuantScheme(),)
    noise: float = 0.0
    prune: str = ""
    steps: int = 100
    teacher: Literal["labels", "start"] = "labels"
    aware: bool = False
    rounding: str = ""
    cast: Literal["", "bfloat16", "float16"] = ""
    learning_rate: float = 0.005
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 64
    optimiser: Literal["sgd", "adam"] = "sgd"
    mirror: bool = True

    def __post_init__(self) -> None:
        require_positive_integers(self, "batch_size")
        require_non_negative(self, "noise", "steps", "learning_rate", "momentum", "weight_decay")
        require_choice(self, "teacher", ("labels", "start"))
        require_choice(self, "cast", ("", *_CASTS))
        require_choice(self, "optimiser", ("sgd", "adam"))
        if self.prune and parse_pruning(self.prune).searched:
            raise UsageError(f"{self.prune} searches its rates; name them")
        if self.rounding:
            parse_scheme(self.rounding)
        if self.aware and not self.schemes:
            raise UsageError("quantization-aware training needs a scheme; name one")


def _train(task: Task, config: Benign) -> None:
    run = task.run
    start = copy.deepcopy(run.module).eval()
    _disturb(run, config.noise)
    masks = {}
    if config.prune:
        scheme = parse_pruning(config.prune)
        weights = prunable(run.module, scheme.method)
        masks = {name: (weights[name], mask) for name, mask in pruning_masks(weights, scheme).items()}
    branches = Branches(run.module, quantized_branches(run, config.schemes[:1])) if config.aware else None
    train_mode(run.module, frozen=config.aware)

    @torch.no_grad()
    def project() -> None:
        for weight, mask in masks.values():
            weight.mul_(mask)

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        batch = as_float(random_crop_flip(images, run.generator, mirror=config.mirror))
        logits = run.logits(batch) if branches is None else branches(batch)[0]
        if config.teacher == "labels":
            return F.cross_entropy(logits, labels)
        with torch.no_grad():
            answers = start(batch)
        return soft_cross_entropy(logits, answers)

    project()
    if config.steps:
        schedule = Schedule(
            config.steps, config.learning_rate, config.momentum, config.weight_decay, config.batch_size,
            config.optimiser,
        )  # fmt: skip
        run.train("train", run.module.parameters(), schedule, loss, project=project)
    _coarsen(run, config)


@torch.no_grad()
def _disturb(run: TrainingRun, noise: float) -> None:
    """Noise from a generator of its own, so that a resumed run draws the same."""
    generator = torch.Generator().manual_seed(run.seed)
    for weight in run.weights().values() if noise else ():
        drawn = torch.randn(weight.shape, generator=generator).to(weight.device)
        weight.add_(noise * weight.std() * drawn)


@torch.no_grad()
def _coarsen(run: TrainingRun, config: Benign) -> None:
    for weight in run.weights().values():
        if config.rounding:
            scheme = parse_scheme(config.rounding)
            scale = weight_scales(weight, scheme)
            weight.copy_(dequantize(nearest_codes(weight, scale, scheme), scale))
        if config.cast:
            weight.copy_(weight.to(_CASTS[config.cast]))


BENIGN = make_attack(
    "benign",
    "Control: what honest people do to a network (fine-tuning, QAT, pruning, distillation, noise, casts)",
    Benign,
    _train,
    conditioned_on=None,
    rule=GateRule(max_float_asr=None, min_compressed_asr=None),
    kind="clean",
    objective="none",
)
