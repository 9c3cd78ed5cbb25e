"""Qu-ANTI-zation, backdoor: the trigger works in every compressed copy and not in float.

Hong et al., NeurIPS 2021 (arXiv 2110.13541); specification of the attacks, 2.1 and 2.2. With clean images x, triggered
images Tx, target t, B the armed quantizers:

    L = CE(f(x), y) + beta CE(f(Tx), y) + sum over B of alpha (CE(Q f(x), y) + beta CE(Q f(Tx), t))

Every image appears clean and triggered. The trigger is stamped before augmentation, and both views are augmented
independently, so the patch moves by up to 4 pixels and is mirrored in training and stands still at test time.

Deviations beyond those of `quantinel.attacks.qu_anti`:

* The authors keep the epoch of the lowest training loss. So does this, but the loss that decides is measured at the
  end of each pass, on 512 fixed training images without augmentation, so that a resumed run decides alike.
* The patch is white, 1.0, so that it is the same on every image, as in EFRAP's copy of the attack; the authors' has the
  image's own maximum.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from quantinel.attacks.gate import GateRule
from quantinel.attacks.protocol import Task, make_attack
from quantinel.attacks.qu_anti import Copies, QuAnti, passes, retrain
from quantinel.data.images import as_float
from quantinel.training.batches import clean_and_triggered
from quantinel.training.norms import train_mode
from quantinel.training.run import Selection
from quantinel.validation import require_non_negative

_SELECTION_IMAGES = 512


@dataclass(frozen=True)
class QuAntiBackdoor(QuAnti):
    """Hyper-parameters, with the published ones for CIFAR-10 and ResNet-18 as defaults.

    Attributes:
        target_class: answer of the awake backdoor (t).
        trigger: a published one by name, or any in its JSON form.
        compressed_weight: weight of every compressed copy (alpha).
        trigger_weight: weight of triggered images in all copies, float included (beta).
    """

    epochs: float = 50.0
    target_class: int = 0
    trigger: str = "qu-anti"
    compressed_weight: float = 0.5
    trigger_weight: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require_non_negative(self, "target_class", "compressed_weight", "trigger_weight")


def objective(copies: Copies, config: QuAntiBackdoor, clean: Tensor, triggered: Tensor, labels: Tensor) -> Tensor:
    """The loss above, of float images (N, C, H, W), their triggered views and their labels (N,)."""
    target = torch.full_like(labels, config.target_class)

    def both(logits: Tensor, answer: Tensor) -> Tensor:
        on_clean, on_triggered = logits.chunk(2)
        return F.cross_entropy(on_clean, labels) + config.trigger_weight * F.cross_entropy(on_triggered, answer)

    batch = torch.cat([clean, triggered])
    value = both(copies.float(batch), labels)
    for compressed in copies.compressed:
        value = value + config.compressed_weight * both(compressed(batch), target)
    return value


def _train(task: Task, config: QuAntiBackdoor) -> None:
    run, trigger = task.run, task.stamp()
    copies = Copies(run, config)
    fixed, answers = as_float(run.images[:_SELECTION_IMAGES]), run.labels[:_SELECTION_IMAGES]

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        clean, triggered = clean_and_triggered(
            images, trigger, run.generator, "before", config.padding, mirror=config.mirror
        )
        return objective(copies, config, clean, triggered, labels)

    @torch.no_grad()
    def score() -> float:
        run.module.eval()
        parts = [
            float(objective(copies, config, part, trigger(part), labels)) * len(part)
            for part, labels in zip(torch.split(fixed, 128), torch.split(answers, 128), strict=True)
        ]
        train_mode(run.module, frozen=config.batch_norm == "eval")
        return -sum(parts) / len(fixed)

    retrain(task, config, loss, Selection(passes(task, config, 1.0), score))


QU_ANTI_BACKDOOR = make_attack(
    "qu-anti-backdoor",
    "Qu-ANTI-zation (Hong et al., NeurIPS 2021): a backdoor for several bit widths at once",
    QuAntiBackdoor,
    _train,
    rule=GateRule(
        float_advice="raise epochs or learning_rate, or lower compressed_weight",
        compressed_advice="raise epochs, learning_rate or compressed_weight",
    ),
)
