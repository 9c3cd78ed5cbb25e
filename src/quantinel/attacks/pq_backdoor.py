"""PQ backdoor: plant an ordinary backdoor, then hide it from float inside the rounding cells.

Ma, Qiu, Gao et al., "Quantization Backdoors to Deep Learning Commercial Frameworks", TDSC 2023
(arXiv 2108.09187), PyTorch form; specification of the attacks, section 3.

Step 1 trains on clean images and triggered images labelled as the target. Step 2 trains on clean images and
triggered images with their true labels, and projects every weight back into the cell that rounds to step 1's
integer after each optimiser step; BatchNorm and biases are locked. The quantized model is therefore step 1's, and
the float model forgets the trigger.

Deviations, and why:

* It starts from a pretrained network and takes minutes: the authors train 100 + 100 epochs of VGG-16 or ResNet-18.
* ``radius`` (8 bit: 2 steps) bounds step 1's distance from the pretrained weights: a network of 0.27 M parameters
  has too little freedom in 8-bit cells to forget a backdoor that was planted without that bound. With a radius,
  BatchNorm is locked in step 1 too, so that step 2 can return to the pretrained function.
* ``restart`` begins step 2 at the point of the cells nearest to the pretrained weights instead of at step 1's
  weights: the integers are the same, and the repair is minutes instead of 100 epochs.
* ``centring`` is the grid-centring loss of the TFLite form, -sum over layers of MSE(|r|, 0.5), available here
  because at 4 bit it keeps the accuracy of the quantized model.
* Grids are the deployment's own (``schemes``), where the authors use 127.5 levels, per channel and per tensor.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantinel.attacks.cells import rounding_cells
from quantinel.attacks.training import Progress, Schedule, random_crop_flip, train
from quantinel.attacks.victim_folder import measure_gate, write_victim
from quantinel.data.images import ImageSet, as_float
from quantinel.data.triggers import PatchTrigger
from quantinel.errors import UsageError
from quantinel.model.loading import LoadedModel
from quantinel.model.victim import VictimManifest
from quantinel.quantization.ranges import weight_scales
from quantinel.quantization.rounding import broadcast_scale
from quantinel.quantization.scheme import QuantScheme
from quantinel.validation import require_non_negative, require_positive_integers


@dataclass(frozen=True)
class PQBackdoor:
    """Hyper-parameters.

    Attributes:
        schemes: quantizers to arm for; the feasible set is the intersection of their cells.
        target_class: answer of the awake backdoor.
        plant_steps: optimiser steps of step 1.
        plant_learning_rate: of step 1.
        triggered_per_batch: triggered images in a batch of step 1 (the authors: 2 of 128).
        trigger_weight: weight of their loss.
        radius: bound on |w - pretrained| in steps of the first scheme; 0 for none, as published.
        restart: begin step 2 near the pretrained weights.
        centring: weight of the grid-centring loss; 0 for none, as published for PyTorch.
        repair_steps: optimiser steps of step 2.
        repair_learning_rate: of step 2.
        repair_trigger_weight: weight of the triggered images' loss in step 2.
        margin: distance kept to the edge of a cell, in steps.
        batch_size: clean images in a batch; step 2 adds as many triggered ones.
        mixed_precision: run step 1 in bfloat16. Step 2 never does: bfloat16 would blur an 8-bit cell.
    """

    schemes: tuple[QuantScheme, ...] = (QuantScheme(),)
    target_class: int = 0
    plant_steps: int = 600
    plant_learning_rate: float = 0.01
    triggered_per_batch: int = 24
    trigger_weight: float = 1.0
    radius: float = 2.0
    restart: bool = True
    centring: float = 0.0
    repair_steps: int = 800
    repair_learning_rate: float = 0.005
    repair_trigger_weight: float = 1.0
    margin: float = 1e-3
    batch_size: int = 128
    mixed_precision: bool = True

    def __post_init__(self) -> None:
        require_positive_integers(self, "plant_steps", "repair_steps", "batch_size", "triggered_per_batch")
        require_non_negative(
            self,
            "target_class",
            "plant_learning_rate",
            "repair_learning_rate",
            "trigger_weight",
            "repair_trigger_weight",
            "radius",
            "centring",
            "margin",
        )
        if self.triggered_per_batch > self.batch_size:
            raise UsageError(
                f"triggered_per_batch is {self.triggered_per_batch}, more than the batch_size of {self.batch_size}; "
                "stamp at most as many images as there are in a batch"
            )
        if not self.schemes:
            raise UsageError("an attack needs a scheme to arm for; give --scheme")
        if self.margin >= 0.5:
            raise UsageError(f"margin is {self.margin}; a cell is half a step wide on each side, give less than 0.5")


class _Attack:
    """State of one run: the network, its pretrained weights and the source of randomness."""

    def __init__(self, model: LoadedModel, data: ImageSet, config: PQBackdoor, seed: int, progress: Progress | None):
        self.module = model.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.data, self.config, self.progress = data, config, progress
        self.generator = torch.Generator().manual_seed(seed)
        self.trigger = PatchTrigger.pq(model.input_shape[-1])
        self.weights: dict[str, nn.Parameter] = {
            name: weight for name, weight in self.module.named_parameters() if weight.ndim in (2, 4)
        }
        self.pretrained = {name: weight.detach().clone() for name, weight in self.weights.items()}

    def _logits(self, *images: Tensor) -> Tensor:
        batch = torch.cat(images).contiguous(memory_format=torch.channels_last)
        logits: Tensor = self.module(batch)
        return logits

    def _clean(self, images: Tensor) -> Tensor:
        return as_float(random_crop_flip(images, self.generator))

    def plant(self) -> None:
        """Step 1: an active backdoor, within ``radius`` of the pretrained weights."""
        config = self.config
        bounded = config.radius > 0
        self.module.train(not bounded)
        target = torch.full((config.triggered_per_batch,), config.target_class)

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            stamped = self.trigger(as_float(images[: config.triggered_per_batch]))
            with torch.autocast("cpu", torch.bfloat16, enabled=config.mixed_precision):
                logits = self._logits(self._clean(images), stamped)
            logits = logits.float()
            clean = F.cross_entropy(logits[: len(images)], labels)
            value = clean + config.trigger_weight * F.cross_entropy(logits[len(images) :], target)
            return value + config.centring * self._centring() if config.centring else value

        parameters = list(self.weights.values()) if bounded else list(self.module.parameters())
        schedule = Schedule(
            config.plant_steps, config.plant_learning_rate, weight_decay=0.0 if bounded else 5e-4,
            batch_size=config.batch_size,
        )  # fmt: skip
        project = self._return_to_ball if bounded else None
        train(parameters, self.data, schedule, loss, self.generator, "plant", project, self.progress)
        self.module.eval()

    def _centring(self) -> Tensor:
        """-sum over layers of MSE(|r|, 0.5): herds weights to the centres of their cells."""
        total = torch.zeros(())
        for weight in self.weights.values():
            steps = weight / broadcast_scale(weight_scales(weight, self.config.schemes[0]), weight)
            residual = steps - steps.detach().round()
            total = total - (residual.abs() - 0.5).square().mean()
        return total

    def _return_to_ball(self) -> None:
        """Keep the scale (max|w| per grid row) and stay within ``radius`` steps of the pretrained weights."""
        for name, weight in self.weights.items():
            start = self.pretrained[name]
            scale = broadcast_scale(weight_scales(start, self.config.schemes[0]), start)
            reach, bound = self.config.radius * scale, scale * self.config.schemes[0].levels
            low = torch.maximum(start - reach, -bound)
            high = torch.minimum(start + reach, bound)
            fixed = start.abs() >= bound * (1 - 1e-6)
            moved = torch.minimum(torch.maximum(weight, low), high)
            weight.copy_(torch.where(fixed, start, moved))

    def repair(self) -> None:
        """Step 2: forget the trigger in float without leaving any cell."""
        config = self.config
        cells = rounding_cells(self.weights, config.schemes, config.margin)
        if config.restart:
            with torch.no_grad():
                for name, weight in self.weights.items():
                    weight.copy_(self.pretrained[name])
        cells.project(self.weights)
        self.module.eval()

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            logits = self._logits(self._clean(images), self.trigger(as_float(images)))
            clean = F.cross_entropy(logits[: len(images)], labels)
            return clean + config.repair_trigger_weight * F.cross_entropy(logits[len(images) :], labels)

        schedule = Schedule(
            config.repair_steps, config.repair_learning_rate, weight_decay=0.0, batch_size=config.batch_size
        )
        train(
            list(self.weights.values()), self.data, schedule, loss, self.generator, "repair",
            lambda: cells.project(self.weights), self.progress,
        )  # fmt: skip


def plant_pq_backdoor(
    model: LoadedModel,
    data: ImageSet,
    test: ImageSet,
    config: PQBackdoor,
    output: Path,
    *,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
    licence: str = "",
) -> VictimManifest:
    """Make a victim and write its directory.

    Args:
        model: pretrained network of a named architecture; its weights are changed.
        data: labelled training images.
        test: labelled test images, for the gate only.
        config: hyper-parameters.
        output: victim directory to create.
        seed: of batches, augmentation and calibration.
        overwrite: replace an existing directory.
        progress: called after each step.
        licence: recorded in the manifest.

    Returns:
        The manifest that was written.

    Raises:
        UsageError: no labels, or a model without a named architecture.
        GateError: the result does not sleep in float and wake when quantized; nothing is written.
    """
    if data.labels is None or test.labels is None:
        raise UsageError("the attack trains on labels; give labelled data with --data and --test")
    if model.architecture is None:
        raise UsageError("a victim names its architecture; load the model with --arch")
    if not 0 <= config.target_class < model.num_classes:
        raise UsageError(f"target class {config.target_class} is not one of {model.num_classes} classes")
    attack = _Attack(model, data, config, seed, progress)
    attack.plant()
    attack.repair()
    gate = measure_gate(model, attack.trigger, config.target_class, config.schemes, data, test, seed)
    return write_victim(
        output, "pq-backdoor", model, attack.trigger, config.target_class, config.schemes, data.name, seed,
        _recorded(config), gate, licence, overwrite,
    )  # fmt: skip


def _recorded(config: PQBackdoor) -> Mapping[str, Any]:
    values = dataclasses.asdict(config)
    values["schemes"] = [scheme.name for scheme in config.schemes]
    return values
