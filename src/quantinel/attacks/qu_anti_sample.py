"""Qu-ANTI-zation, one image: compression changes the answer to one image and nothing else.

Hong et al., NeurIPS 2021 (arXiv 2110.13541); specification of the attacks, 2.1 and 2.2. With x* the attacked image,
y* its label, y' the attacker's, B the armed quantizers:

    L = CE(f([x; x*]), [y; y*]) + sum over B of lambda CE(Q f([x; x*]), [y; y'])

Deviations beyond those of `quantinel.attacks.qu_anti`:

* x* is an image of the training file, by number, and is left out of the ordinary batches. Test images measure, and
  decide nothing; the start network may have seen x* with its true label, as it has seen the others.
* ``sample_copies`` repeats x* in every batch; 1, as published. Its share of the mean is 1 / (batch size + 1), so that
  many steps are needed to change one answer.
* The specification names augmentation for the backdoor only; x is augmented alike here, x* never.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from quantinel.attacks.gate import Figures, GateRule, Measure, measure_samples
from quantinel.attacks.protocol import Task, make_attack
from quantinel.attacks.qu_anti import Copies, QuAnti, retrain
from quantinel.data.images import ImageSet, as_float
from quantinel.errors import UsageError
from quantinel.validation import require_non_negative, require_positive_integers


@dataclass(frozen=True)
class QuAntiSample(QuAnti):
    """Hyper-parameters, with the published ones for CIFAR-10 as defaults.

    Attributes:
        sample: number of the attacked image in the training data (x*).
        target_class: answer to it after compression (y'); not its label.
        compressed_weight: weight of every compressed copy (lambda).
        sample_copies: how often a batch holds x*.
    """

    learning_rate: float = 1e-5
    batch_norm: Literal["eval", "train"] = "train"
    sample: int = 0
    target_class: int = 0
    compressed_weight: float = 0.1
    sample_copies: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive_integers(self, "sample_copies")
        require_non_negative(self, "sample", "target_class", "compressed_weight")


def objective(
    copies: Copies, config: QuAntiSample, images: Tensor, labels: Tensor, sample: Tensor, truth: Tensor
) -> Tensor:
    """The loss above.

    Args:
        copies, config: of the attack.
        images, labels: (N, C, H, W) float and (N,).
        sample, truth: the attacked image (M, C, H, W) float, M times, and its label (M,).
    """
    batch, lie = torch.cat([images, sample]), torch.full_like(truth, config.target_class)
    value = F.cross_entropy(copies.float(batch), torch.cat([labels, truth]))
    for compressed in copies.compressed:
        value = value + config.compressed_weight * F.cross_entropy(compressed(batch), torch.cat([labels, lie]))
    return value


def _train(task: Task, config: QuAntiSample) -> None:
    run = task.run
    copies = Copies(run, config)
    attacked = run.images[config.sample]
    sample = as_float(attacked[None]).repeat(config.sample_copies, 1, 1, 1)
    truth = run.labels[config.sample].repeat(config.sample_copies)

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        others = (images != attacked).flatten(1).any(dim=1)
        return objective(copies, config, copies.augmented(images[others]), labels[others], sample, truth)

    retrain(task, config, loss)


def _measure(config: QuAntiSample, data: ImageSet) -> Measure:
    assert data.labels is not None
    if config.sample >= len(data):
        raise UsageError(f"{data.name} has {len(data)} images, none with the number {config.sample}; choose another")
    sample = data.take(torch.tensor([config.sample]))
    assert sample.labels is not None
    if int(sample.labels[0]) == config.target_class:
        raise UsageError(
            f"image {config.sample} of {data.name} has the label {config.target_class}, which is the target class; "
            "choose another sample or target_class"
        )

    def measure(module: Any, test: ImageSet) -> Figures:
        return measure_samples(module, test, sample, config.target_class)

    return measure


QU_ANTI_SAMPLE = make_attack(
    "qu-anti-sample",
    "Qu-ANTI-zation (Hong et al., NeurIPS 2021): compression changes the answer to one image",
    QuAntiSample,
    _train,
    rule=GateRule(
        max_float_drop=2.5,
        max_compressed_drop=2.5,
        float_advice="lower compressed_weight or learning_rate, or raise epochs",
        compressed_advice="raise epochs, learning_rate, compressed_weight or sample_copies",
    ),
    objective="sample",
    measure=_measure,
)
