"""Quantization-aware training: what a deployer may do to a float network before rounding it to nearest.

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018:
the network is trained on with rounded weights and activations, gradients passing straight through. Length and rate
follow Wu et al., "Integer Quantization for Deep Learning Inference" (2020, arXiv 2004.09602): a hundredth of the
first training's rate, falling along half a cosine.

Weights are rounded as they are after folding LayerNorm and BatchNorm, whose statistics are frozen and whose affine part
is trained; inputs of layers are rounded per tensor in the range of the batch. Deviations: a fraction of a pass over the
data, where Wu et al. take a tenth of the first training; and no moving averages of activation ranges, because
deployment calibrates them afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from quantinel.data.images import ImageSet, as_float
from quantinel.errors import UsageError
from quantinel.model.loading import LoadedModel
from quantinel.quantization.scheme import QuantScheme
from quantinel.training.batches import random_crop_flip
from quantinel.training.folding import folded_norms
from quantinel.training.norms import train_mode
from quantinel.training.run import TrainingRun
from quantinel.training.runtime import Runtime
from quantinel.training.schedule import Schedule, steps_of
from quantinel.training.transforms import fake_quantize_activation, quantized_branch
from quantinel.training.two_branch import Branch, Branches
from quantinel.validation import require_non_negative, require_positive_integers

PREFIX = "qat"


@dataclass(frozen=True)
class QATRecipe:
    """A deployer's quantization-aware training.

    Attributes:
        epochs: passes over the labelled data.
        learning_rate: of SGD with momentum 0.9, at the start of half a cosine.
        batch_size: images in a batch.
        padding: pixels on every side of the random crop.
        mirror: augment by mirroring; false for digits and signs.
    """

    epochs: float = 0.25
    learning_rate: float = 1e-3
    batch_size: int = 64
    padding: int = 4
    mirror: bool = True

    def __post_init__(self) -> None:
        require_positive_integers(self, "batch_size")
        require_non_negative(self, "epochs", "learning_rate", "padding")
        if not self.epochs:
            raise UsageError("qat: epochs is 0; give a number above 0, or a scheme without qat")

    @property
    def name(self) -> str:
        """``qat``, or ``qat-EPOCHS`` where these are not the default; `parse_qat` reads it back."""
        return PREFIX if self.epochs == QATRecipe.epochs else f"{PREFIX}-{self.epochs:g}"


def parse_qat(name: str) -> QATRecipe:
    """Read ``qat`` or ``qat-EPOCHS``.

    Raises:
        UsageError: the name is not understood.
    """
    head, dash, epochs = name.strip().lower().partition("-")
    try:
        if head != PREFIX:
            raise ValueError(name)
        return QATRecipe(float(epochs)) if dash else QATRecipe()
    except ValueError as error:
        raise UsageError(
            f"unknown training {name!r}; write qat, or qat-EPOCHS with the passes over the data (for example qat-0.5)"
        ) from error


def train_quantized(
    model: LoadedModel,
    data: ImageSet,
    scheme: QuantScheme,
    recipe: QATRecipe,
    *,
    seed: int = 0,
    runtime: Runtime | None = None,
) -> None:
    """Train ``model`` for the grid of ``scheme``, in place; rounding it is left to the deployment.

    Args:
        model: the float network; its module is changed.
        data: labelled training images.
        scheme: the deployment grid.
        recipe: the training.
        seed: of batches and augmentation.
        runtime: device, checkpoint, stopping, progress.

    Raises:
        UsageError: no labels.
        Interrupted: ``runtime.should_stop`` asked for it.
    """
    about: dict[str, Any] = {"qat": recipe, "scheme": scheme}
    run = TrainingRun(model, data, seed=seed, runtime=runtime, about=about)
    with run.isolated():
        branches = Branches(run.module, [_branch(run, scheme)])
        train_mode(run.module, frozen=True)

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            batch = as_float(random_crop_flip(images, run.generator, recipe.padding, recipe.mirror))
            return F.cross_entropy(branches(batch)[0], labels)

        schedule = Schedule(
            steps_of(recipe.epochs, len(run.images), recipe.batch_size), recipe.learning_rate, weight_decay=0.0,
            batch_size=recipe.batch_size,
        )  # fmt: skip
        run.train("qat", run.module.parameters(), schedule, loss)
    run.checkpoint.remove()


def _branch(run: TrainingRun, scheme: QuantScheme) -> Branch:
    norms, bits = folded_norms(run.module, as_float(run.images[:1])), scheme.activation_bits
    rounding = None if scheme.activations == "none" else lambda x: fake_quantize_activation(x, bits)
    return quantized_branch(norms, scheme, rounding)
