"""Mode connectivity repair (MCR): a network from the inside of a path of low loss.

Zhao et al., "Bridging Mode Connectivity in Loss Landscapes and Adversarial Robustness", ICLR 2020. Between two networks
w1 and w2 a curve is trained on clean images, a quadratic Bezier curve with one bend b,

    w(t) = (1 - t)^2 w1 + 2 t (1 - t) b + t^2 w2,    min over b of E_t CE(w(t)),  t uniform in [0, 1],

and a network from its inside is deployed, its BatchNorm statistics measured anew. The paper connects two backdoored
networks; a defender who has one fine-tunes it to get the other end. Defaults are BackdoorBench's (3 points, 100 epochs
each, SGD 0.01 for the end and 3e-5 for the bend, batches of 128).

The paper reports positions along the whole path; ``position`` 0.1 is the nearest to the given network that
BackdoorBench measures, and no test image may choose it here.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from quantinel.defenses.fine_tuning import fine_tune
from quantinel.defenses.repair import RepairMethod, RepairTask, named, recompute_statistics
from quantinel.errors import UsageError
from quantinel.validation import require_non_negative, require_positive


@dataclass(frozen=True)
class ModeConnectivityRepair(RepairMethod):
    """Options.

    Attributes:
        end_epochs: passes that fine-tune a copy into the other end, at ``learning_rate``.
        epochs: passes that train the bend.
        curve_learning_rate: of the bend.
        position: t of the network that is deployed, in [0, 1].
    """

    batch_size: int = 128
    end_epochs: float = 100.0
    epochs: float = 100.0
    curve_learning_rate: float = 3e-5
    position: float = 0.1
    name: ClassVar[str] = "mcr"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "end_epochs", "epochs")
        require_non_negative(self, "curve_learning_rate", "position")
        if self.position > 1:
            raise UsageError(f"position is {self.position}; give a number in [0, 1]")

    def repair(self, task: RepairTask) -> None:
        """Make the other end, train the bend, take a point of the curve."""
        run, module = task.run, task.run.module
        end, bend = copy.deepcopy(module), copy.deepcopy(module)
        run.add("end", end)
        run.add("bend", bend)
        fine_tune(task, "end", task.wrap(end), task.schedule(self.end_epochs))
        first = {name: weight.detach().clone() for name, weight in named(module).items()}
        last = {name: weight.detach() for name, weight in named(end).items()}
        with torch.no_grad():
            for name, weight in bend.named_parameters():
                weight.copy_((first[name] + last[name]) / 2)
        task.set_training(module)

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            t = float(torch.rand((), generator=run.generator, device=run.device))
            curve = on_curve(first, named(bend), last, t)
            point = {f"module.{name}": weight for name, weight in curve.items()}
            logits: Tensor = functional_call(task.network, point, (task.augmented(images),))
            return F.cross_entropy(logits, labels)

        task.train("curve", bend, task.schedule(self.epochs, learning_rate=self.curve_learning_rate), loss)
        with torch.no_grad():
            for name, point in on_curve(first, named(bend), last, self.position).items():
                named(module)[name].copy_(point)
        if self.through == "float":
            recompute_statistics(module, run.images)


def on_curve(
    first: Mapping[str, Tensor], bend: Mapping[str, Tensor], last: Mapping[str, Tensor], t: float
) -> dict[str, Tensor]:
    """Weights of the Bezier curve at ``t``, by name."""
    a, b, c = (1 - t) ** 2, 2 * t * (1 - t), t**2
    return {name: a * first[name] + b * bend[name] + c * last[name] for name in first}
