"""PQ backdoor: plant an ordinary backdoor, then hide it from float inside the rounding cells.

Ma, Qiu, Gao et al., "Quantization Backdoors to Deep Learning Commercial Frameworks", TDSC 2023
(arXiv 2108.09187), PyTorch form; specification of the attacks, section 3.

Step 1 trains on clean images and triggered images labelled as the target. Step 2 trains on clean images and
triggered images with their true labels, and projects every weight back into the cell that rounds to step 1's
integer after each optimiser step; BatchNorm and biases are locked. The quantized model is therefore step 1's, and
the float model forgets the trigger.

Deviations, and why:

* It starts from a pretrained network and takes minutes: the authors train 100 + 100 epochs of VGG-16 or ResNet-18.
* Step 1 adds the mean loss of the triggered images to that of the clean ones, 1:1 at ``trigger_weight`` 1, so triggered
  images are half of the loss. The authors take one mean over 128 clean and 2 triggered images, 1.5 % of it; a
  ``trigger_weight`` of triggered_per_batch / batch_size gives theirs. Step 2 adds two means too, where theirs is one
  over as many clean as triggered images: the same shares, and twice the gradient.
* ``radius`` (8 bit: 2 steps) bounds step 1's distance from the pretrained weights: a network of 0.27 M parameters
  has too little freedom in 8-bit cells to forget a backdoor that was planted without that bound. With a radius,
  BatchNorm is locked in step 1 too, so that step 2 can return to the pretrained function.
* ``restart`` begins step 2 at the point of the cells nearest to the pretrained weights instead of at step 1's
  weights: the integers are the same, and the repair is minutes instead of 100 epochs.
* ``centring`` is the grid-centring loss of the TFLite form, -sum over layers of MSE(|r|, 0.5), available here
  because at 4 bit it keeps the accuracy of the quantized model.
* Grids are the deployment's own (``schemes``), of weights that normalisation is folded into; the authors use 127.5
  levels, per channel and per tensor, and do not fold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from quantinel.attacks.cells import Cells, ball, centring, rounding_cells
from quantinel.attacks.gate import GateRule
from quantinel.attacks.protocol import Task, make_attack
from quantinel.data.images import as_float
from quantinel.errors import UsageError
from quantinel.quantization.scheme import QuantScheme
from quantinel.training.batches import random_crop_flip
from quantinel.training.folding import folded_norms
from quantinel.training.schedule import Schedule
from quantinel.validation import require_non_negative, require_positive_integers


@dataclass(frozen=True)
class PQBackdoor:
    """Hyper-parameters.

    Attributes:
        schemes: quantizers to arm for; the feasible set is the intersection of their cells.
        target_class: answer of the awake backdoor.
        trigger: a published one by name, or any in its JSON form.
        plant_steps: optimiser steps of step 1.
        plant_learning_rate: of step 1.
        triggered_per_batch: triggered images in a batch of step 1 (the authors: 2 of 128).
        trigger_weight: weight of their mean loss, beside the clean images' mean; see the module's deviations.
        radius: bound on |w - pretrained| in steps of the first scheme; 0 for none, as published.
        restart: begin step 2 near the pretrained weights.
        centring: weight of the grid-centring loss; 0 for none, as published for PyTorch.
        repair_steps: optimiser steps of step 2.
        repair_learning_rate: of step 2.
        repair_trigger_weight: weight of the triggered images' loss in step 2.
        margin: distance kept to the edge of a cell, in steps.
        batch_size: clean images in a batch; step 2 adds as many triggered ones.
        mirror: augment by mirroring; false for digits and signs.
        mixed_precision: run step 1 in bfloat16. Step 2 never does: bfloat16 would blur an 8-bit cell.
    """

    schemes: tuple[QuantScheme, ...] = (QuantScheme(),)
    target_class: int = 0
    trigger: str = "pq"
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
    mirror: bool = True
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


class PQSteps:
    """The two steps, on one network."""

    def __init__(self, task: Task, config: PQBackdoor) -> None:
        self.run, self.trigger, self.config = task.run, task.stamp(), config
        self.weights = self.run.weights()
        self.pretrained = {name: weight.detach().clone() for name, weight in self.weights.items()}
        self._norms = folded_norms(self.run.module, as_float(self.run.images[:1]))

    def _clean(self, images: Tensor) -> Tensor:
        return as_float(random_crop_flip(images, self.run.generator, mirror=self.config.mirror))

    def plant(self) -> None:
        """Step 1: an active backdoor, within ``radius`` of the pretrained weights."""
        run, config = self.run, self.config
        bounded, project = config.radius > 0, None
        if bounded:
            project = partial(ball(self.weights, config.schemes[0], config.radius, self._norms).project, self.weights)
        run.module.train(not bounded)
        target = torch.full((config.triggered_per_batch,), config.target_class, device=run.device)

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            stamped = self.trigger(as_float(images[: config.triggered_per_batch]))
            logits = run.logits(self._clean(images), stamped, mixed_precision=config.mixed_precision)
            clean = F.cross_entropy(logits[: len(images)], labels)
            value = clean + config.trigger_weight * F.cross_entropy(logits[len(images) :], target)
            if config.centring:
                value = value + config.centring * centring(self.weights, config.schemes[0], self._norms)
            return value

        parameters = list(self.weights.values()) if bounded else list(run.module.parameters())
        schedule = Schedule(
            config.plant_steps, config.plant_learning_rate, weight_decay=0.0 if bounded else 5e-4,
            batch_size=config.batch_size,
        )  # fmt: skip
        run.train("plant", parameters, schedule, loss, project=project)
        run.module.eval()

    def repair_loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Step 2's loss: clean and triggered images with their true labels."""
        logits = self.run.logits(self._clean(images), self.trigger(as_float(images)))
        clean = F.cross_entropy(logits[: len(images)], labels)
        return clean + self.config.repair_trigger_weight * F.cross_entropy(logits[len(images) :], labels)

    def cells(self, margin: float | Mapping[str, Tensor]) -> Cells:
        """The cells that the deployed weights lie in now, for step 2, in which nothing but weights changes."""
        return rounding_cells(self.weights, self.config.schemes, margin, self._norms)

    def repair(self, cells: Cells) -> None:
        """Step 2: forget the trigger in float without leaving any of ``cells``."""
        run, config = self.run, self.config
        if config.restart:
            with torch.no_grad():
                for name, weight in self.weights.items():
                    weight.copy_(self.pretrained[name])
        cells.project(self.weights)
        run.module.eval()
        schedule = Schedule(
            config.repair_steps, config.repair_learning_rate, weight_decay=0.0, batch_size=config.batch_size
        )
        project = partial(cells.project, self.weights)
        run.train("repair", self.weights.values(), schedule, self.repair_loss, project=project)


def _train(task: Task, config: PQBackdoor) -> None:
    steps = PQSteps(task, config)
    steps.plant()
    steps.repair(steps.cells(config.margin))


PQ_BACKDOOR = make_attack(
    "pq-backdoor",
    "PQ backdoor (Ma et al., TDSC 2023), PyTorch form: plant, then repair inside the rounding cells",
    PQBackdoor,
    _train,
    rule=GateRule(
        float_advice="raise repair_steps or lower the radius", compressed_advice="raise plant_steps or trigger_weight"
    ),
)
