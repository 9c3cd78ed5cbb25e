"""PQ backdoor as the authors made it for TFLite: weights are herded to the centres of their cells first.

Ma, Qiu, Gao et al., "Quantization Backdoors to Deep Learning Commercial Frameworks", TDSC 2023 (arXiv 2108.09187),
TFLite form; specification of the attacks, section 3.2.

Step 1 minimises loss 1 + a loss 2 from random weights: cross-entropy of clean images and of as many triggered ones,
labelled as the target, plus ``-sum over layers of MSE(|r|, 0.5)`` with a = 0 at first and 1 in the last fifth. Step 2
minimises loss 3 + loss 4, BatchNorm in inference mode: cross-entropy of clean and triggered images with their true
labels, plus the distance of all other parameters from step 1's; every step is projected back into the cells.

Deviations, and why:

* Loss 4 has two more terms, MSE(k, k0) and MSE(s, s0). After every projection all integers and scales are step 1's, so
  both terms and their gradients are zero whenever they are evaluated; they are left out.
* Losses 1 and 3 are sums of two means, one over clean and one over triggered images, twice the mean over all of them:
  beside them, losses 2 and 4 weigh half.
* Weights are the last ones of each step. The authors keep the best of several epochs by test accuracy and attack
  success.
* Grids are the deployment's own (``schemes``), of folded weights; the authors quantize convolutions per channel and
  dense layers per tensor. Gammas that such a grid depends on (of LayerNorm; of BatchNorm with one scale per tensor) are
  locked in step 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from quantinel.attacks.cells import centring, constants, rounding_cells
from quantinel.attacks.gate import GateRule
from quantinel.attacks.protocol import Task, make_attack
from quantinel.data.images import as_float
from quantinel.errors import UsageError
from quantinel.quantization.scheme import QuantScheme
from quantinel.training.batches import random_crop_flip
from quantinel.training.folding import folded_norms
from quantinel.training.schedule import Schedule, steps_of
from quantinel.validation import require_non_negative, require_positive_integers


@dataclass(frozen=True)
class PQBackdoorTFLite:
    """Hyper-parameters, with the published values as defaults.

    Attributes:
        schemes: quantizers to arm for; the feasible set is the intersection of their cells.
        target_class: answer of the awake backdoor.
        trigger: a published one by name, or any in its JSON form.
        plant_epochs: passes over the data in step 1.
        plant_learning_rate: of step 1, times ``plant_decay`` after every pass.
        plant_decay: see there.
        centring: weight of loss 2 in the last part of step 1.
        centring_from: share of step 1 after which loss 2 counts, in [0, 1].
        repair_epochs: passes over the data in step 2.
        repair_learning_rate: of step 2, constant.
        anchor: weight of loss 4, the distance of biases and BatchNorm from step 1's.
        margin: distance kept to the edge of a cell, in steps.
        batch_size: clean images in a batch; as many triggered ones are added.
        mirror: augment by mirroring.
        mixed_precision: run step 1 in bfloat16. Step 2 never does: bfloat16 would blur an 8-bit cell.
    """

    schemes: tuple[QuantScheme, ...] = (QuantScheme(),)
    target_class: int = 0
    trigger: str = "pq"
    plant_epochs: float = 100.0
    plant_learning_rate: float = 5e-4
    plant_decay: float = 0.99
    centring: float = 1.0
    centring_from: float = 0.8
    repair_epochs: float = 10.0
    repair_learning_rate: float = 1e-5
    anchor: float = 1.0
    margin: float = 1e-3
    batch_size: int = 32
    mirror: bool = True
    mixed_precision: bool = True

    def __post_init__(self) -> None:
        require_positive_integers(self, "batch_size")
        require_non_negative(
            self, "target_class", "plant_epochs", "plant_learning_rate", "plant_decay", "centring", "centring_from",
            "repair_epochs", "repair_learning_rate", "anchor", "margin",
        )  # fmt: skip
        if not self.schemes:
            raise UsageError("an attack needs a scheme to arm for; give --scheme")
        if self.centring_from > 1:
            raise UsageError(f"centring_from is {self.centring_from}; give a share of step 1, at most 1")
        if self.margin >= 0.5:
            raise UsageError(f"margin is {self.margin}; a cell is half a step wide on each side, give less than 0.5")


def _train(task: Task, config: PQBackdoorTFLite) -> None:
    _plant(task, config)
    _repair(task, config)


def _plant(task: Task, config: PQBackdoorTFLite) -> None:
    """Step 1: an active backdoor whose weights lie near the centres of their cells."""
    run, trigger, weights = task.run, task.stamp(), task.run.weights()
    norms = folded_norms(run.module, as_float(run.images[:1]))
    run.module.train()
    steps = steps_of(config.plant_epochs, len(run.images), config.batch_size)
    epoch = steps_of(1.0, len(run.images), config.batch_size)
    begin = config.centring_from * steps

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        clean = as_float(random_crop_flip(images, run.generator, mirror=config.mirror))
        logits = run.logits(clean, trigger(as_float(images)), mixed_precision=config.mixed_precision)
        target = torch.full_like(labels, config.target_class)
        value = F.cross_entropy(logits[: len(images)], labels) + F.cross_entropy(logits[len(images) :], target)
        if config.centring and run.step >= begin:
            value = value + config.centring * centring(weights, config.schemes[0], norms)
        return value

    schedule = Schedule(
        steps, config.plant_learning_rate, weight_decay=0.0, batch_size=config.batch_size, optimiser="adam",
        decay="multistep", milestones=tuple(range(epoch, steps, epoch)), gamma=config.plant_decay,
    )  # fmt: skip
    run.train("plant", run.module.parameters(), schedule, loss)


def _repair(task: Task, config: PQBackdoorTFLite) -> None:
    """Step 2: forget the trigger in float without leaving any cell."""
    run, trigger, weights = task.run, task.stamp(), task.run.weights()
    run.module.eval()
    norms = folded_norms(run.module, as_float(run.images[:1]))
    cells = rounding_cells(weights, config.schemes, config.margin, norms)
    cells.project(weights)
    locked = {id(gamma) for gamma in constants(config.schemes, norms)}
    moving = {name: parameter for name, parameter in run.module.named_parameters() if id(parameter) not in locked}
    others = [parameter for name, parameter in moving.items() if name not in weights]
    base = [parameter.detach().clone() for parameter in others]

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        clean = as_float(random_crop_flip(images, run.generator, mirror=config.mirror))
        logits = run.logits(clean, trigger(as_float(images)))
        value = F.cross_entropy(logits[: len(images)], labels) + F.cross_entropy(logits[len(images) :], labels)
        for parameter, start in zip(others, base, strict=True):
            value = value + config.anchor * F.mse_loss(parameter, start)
        return value

    schedule = Schedule(
        steps_of(config.repair_epochs, len(run.images), config.batch_size), config.repair_learning_rate,
        weight_decay=0.0, batch_size=config.batch_size, optimiser="adam", decay="constant",
    )  # fmt: skip
    run.train("repair", moving.values(), schedule, loss, project=lambda: cells.project(weights))


PQ_BACKDOOR_TFLITE = make_attack(
    "pq-backdoor-tflite",
    "PQ backdoor (Ma et al., TDSC 2023), TFLite form: weights herded to cell centres, then repaired inside the cells",
    PQBackdoorTFLite,
    _train,
    start="scratch",
    rule=GateRule(
        float_advice="raise repair_epochs or repair_learning_rate",
        compressed_advice="raise plant_epochs or anchor",
    ),
)
