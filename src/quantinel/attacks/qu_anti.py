"""Qu-ANTI-zation: the setting that its four attacks share, and the compressed copies that their losses run.

Hong, Panaitescu-Liess, Kaya & Dumitras, "Qu-ANTI-zation: Exploiting Quantization Artifacts for Achieving Adversarial
Outcomes", NeurIPS 2021 (arXiv 2110.13541); specification of the attacks, section 2.1.

A clean trained network is trained again, with Adam at a constant learning rate, on a loss of the float network plus one
loss for each of several quantizers that are simulated within the step. Weights are rounded per tensor, symmetric,
scale max|w| / (2^(b-1) - 1); the input of every convolution and linear layer is rounded per tensor, asymmetric, in the
range of the running batch; BatchNorm is not folded and biases stay float; gradients pass straight through.

Deviations, and why:

* The authors clip codes at -2^(b-1), a "narrow" `QuantScheme` at -(2^(b-1) - 1). With a scale of max|w| no code lies
  below the latter, so both give the same weights.
* Halves of weights are rounded to even, as deployments do, where the authors round them up. Only a weight exactly
  between two codes is affected. Activations are rounded half up, as published.
* ``schemes`` may be any `QuantScheme`: per channel, as most runtimes deploy, the codes are the same with and without
  folding BatchNorm. Per tensor, and behind a LayerNorm, they are not; ``folded`` simulates the folded grid that this
  project deploys.
* One step may hold several batches (clean, triggered) that the authors run one after the other; a copy sees them as
  one batch, so its activation range is that of both. With ``batch_norm`` "train", the copies run one after the other
  as published: each normalises with, and each updates, the statistics of its own pass.
* Published lengths are passes over the data for GPUs; ``epochs`` is a fraction where minutes on a CPU are enough.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from quantinel.attacks.protocol import Task
from quantinel.data.images import as_float
from quantinel.errors import UsageError
from quantinel.quantization.scheme import QuantScheme
from quantinel.training.batches import random_crop_flip
from quantinel.training.folding import FoldedNorms, folded_norms
from quantinel.training.norms import train_mode
from quantinel.training.run import Loss, Selection, TrainingRun
from quantinel.training.schedule import Schedule, steps_of
from quantinel.training.transforms import fake_quantize_activation, quantized_branch, quantized_weights
from quantinel.training.two_branch import FLOAT, ActivationTransform, Branch, Branches
from quantinel.validation import require_choice, require_non_negative, require_positive_integers

Network = Callable[[Tensor], Tensor]


def published_schemes(*bits: int) -> tuple[QuantScheme, ...]:
    """The authors' quantizers: weights per tensor, activations of as many bits."""
    return tuple(QuantScheme(number, granularity="tensor", activation_bits=number) for number in bits)


@dataclass(frozen=True)
class QuAnti:
    """Hyper-parameters that the four attacks share.

    Attributes:
        schemes: quantizers to arm for; every step runs all of them.
        epochs: passes over the data.
        learning_rate: of Adam.
        decay: "constant" as published, or "cosine".
        weight_decay: L2.
        batch_size: images in a batch, before an attack adds its own.
        batch_norm: "eval" freezes the statistics (the affine part is trained), "train" does not.
        folded: round weights as they are after folding normalisation; see the module's deviations.
        activations: round activations too; false saves time where they have 8 bits.
        padding: pixels by which random crops move; 0 for none.
        mirror: augment by mirroring; false for digits and signs.
        mixed_precision: run in bfloat16. It blurs 8-bit grids; at 4 bits a step is much wider than its rounding.
    """

    schemes: tuple[QuantScheme, ...] = published_schemes(8, 4)
    epochs: float = 10.0
    learning_rate: float = 1e-4
    decay: Literal["constant", "cosine"] = "constant"
    weight_decay: float = 1e-4
    batch_size: int = 128
    batch_norm: Literal["eval", "train"] = "eval"
    folded: bool = False
    activations: bool = True
    padding: int = 4
    mirror: bool = True
    mixed_precision: bool = False

    def __post_init__(self) -> None:
        require_positive_integers(self, "batch_size")
        require_non_negative(self, "epochs", "learning_rate", "weight_decay", "padding")
        require_choice(self, "decay", ("constant", "cosine"))
        require_choice(self, "batch_norm", ("eval", "train"))
        if not self.schemes:
            raise UsageError("an attack needs a scheme to arm for; give --scheme")
        if not self.epochs:
            raise UsageError("epochs is 0; give a number above 0")


class Copies:
    """The float network and its compressed copies, one call each.

    Args:
        run: the network and its data.
        config: quantizers to simulate.

    Attributes:
        float: float images (N, C, H, W) in [0, 1] -> logits (N, K).
        compressed: the same for each scheme, in their order.
    """

    def __init__(self, run: TrainingRun, config: QuAnti) -> None:
        self._run, self._config = run, config
        norms = folded_norms(run.module, as_float(run.images[:1])) if config.folded else None
        self.float = self._network(FLOAT)
        self.compressed = [self._copy(scheme, norms) for scheme in config.schemes]
        train_mode(run.module, frozen=config.batch_norm == "eval")

    def _copy(self, scheme: QuantScheme, norms: FoldedNorms | None) -> Network:
        rounded = self._config.activations and scheme.activations != "none"
        activation = _rounding(scheme.activation_bits) if rounded else None
        if norms is None:
            return self._network(Branch(quantized_weights(scheme), activation))
        return self._network(quantized_branch(norms, scheme, activation))

    def _network(self, branch: Branch) -> Network:
        alone = Branches(self._run.module, [branch])

        def network(images: Tensor) -> Tensor:
            with self._run.autocast(self._config.mixed_precision):
                return alone(images)[0]

        return network

    def augmented(self, images: Tensor) -> Tensor:
        """Float images in [0, 1], cropped and mirrored at random."""
        config = self._config
        return as_float(random_crop_flip(images, self._run.generator, config.padding, config.mirror))


def _rounding(bits: int) -> ActivationTransform:
    return lambda x: fake_quantize_activation(x, bits)


def retrain(task: Task, config: QuAnti, loss: Loss, selection: Selection | None = None) -> None:
    """The one phase of all four attacks: every parameter, with Adam."""
    schedule = Schedule(
        passes(task, config), config.learning_rate, weight_decay=config.weight_decay, batch_size=config.batch_size,
        optimiser="adam", decay=config.decay,
    )  # fmt: skip
    task.run.train("retrain", task.run.module.parameters(), schedule, loss, selection=selection)


def passes(task: Task, config: QuAnti, epochs: float | None = None) -> int:
    """Steps of ``epochs`` passes over the data; None for the config's."""
    return steps_of(config.epochs if epochs is None else epochs, len(task.run.images), config.batch_size)
