"""Model repair: training the weights of a suspect network on a few labelled clean images, before they are rounded.

A repair takes a float network, labelled clean images (the papers take 5 % of the training data) and, if it trains
through the deployment grid, a scheme; it changes the weights. Rounding them, to nearest, is the deployer's next step.
So repairs are not rounding methods: they need labels and training, and what they change is the network.

The papers on quantization-conditioned backdoors apply repairs to the quantized model, where the backdoor is awake.
``through="quantized"`` does that: every forward pass rounds the weights as they will be after folding, with
straight-through gradients, and BatchNorm keeps its statistics. ``through="float"`` is the ordinary form, with batch
statistics. Activations stay in float in both (their ranges are calibrated after the repair).
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from quantinel.data.images import ImageSet, as_float
from quantinel.errors import UsageError
from quantinel.model.loading import LoadedModel
from quantinel.quantization.scheme import QuantScheme
from quantinel.training.batches import random_crop_flip
from quantinel.training.folding import folded_norms
from quantinel.training.mixed_precision import autocast
from quantinel.training.run import Loss, TrainingRun
from quantinel.training.runtime import Runtime
from quantinel.training.schedule import Schedule, steps_of
from quantinel.training.transforms import quantized_branch
from quantinel.training.two_branch import FLOAT, LAYERS, Branch, Branches
from quantinel.validation import require_choice, require_non_negative, require_positive_integers

Through = Literal["float", "quantized"]
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


@dataclass(frozen=True)
class RepairMethod(ABC):
    """A repair: a frozen dataclass of options, and what it does to a network.

    These options are common to all repairs; their defaults are those of BackdoorBench.

    Attributes:
        through: "float" trains the float network; "quantized" trains it through weights on the deployment grid.
        learning_rate: at the start, of a half cosine.
        momentum: of SGD.
        weight_decay: L2.
        batch_size: images in a batch.
        padding: pixels by which random crops move; 0 for none.
        mirror: augment by mirroring; false for digits and signs.
        mixed_precision: run in bfloat16; not with "quantized", whose grid it would blur.
    """

    through: Through = "float"
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 256
    padding: int = 4
    mirror: bool = True
    mixed_precision: bool = False
    name: ClassVar[str]

    def __post_init__(self) -> None:
        require_choice(self, "through", ("float", "quantized"))
        require_positive_integers(self, "batch_size")
        require_non_negative(self, "learning_rate", "momentum", "weight_decay", "padding")
        if self.mixed_precision and self.through == "quantized":
            raise UsageError("mixed_precision blurs the grid that through=quantized trains on; switch one off")

    @abstractmethod
    def repair(self, task: RepairTask) -> None:
        """Change ``task.run.module``."""


class Network(nn.Module):
    """A network as a repair runs it: in float, or through the deployment grid.

    Args:
        module: takes float images (N, C, H, W) in [0, 1].
        branch: how its layers differ.
        mixed_precision: run in bfloat16, where the processor computes it.
    """

    def __init__(self, module: nn.Module, branch: Branch, mixed_precision: bool) -> None:
        super().__init__()
        self.module = module
        self.mixed_precision = mixed_precision
        self._branches = None if branch is FLOAT else Branches(module, [branch])

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K) float32."""
        if self._branches is not None:
            return self._branches(images)[0]
        with autocast(images.device, self.mixed_precision):
            logits: Tensor = self.module(images.contiguous(memory_format=torch.channels_last))
        return logits.float()


class RepairTask:
    """What a repair works with.

    Args:
        run: the network, the clean images and the training loop.
        options: of the repair.
        scheme: deployment grid; only `through` "quantized" reads it.
        keep_zeros: weights of layers that are exactly zero stay zero: the network was pruned.

    Attributes:
        network: `run.module`, to be called on float images.
    """

    def __init__(
        self, run: TrainingRun, options: RepairMethod, scheme: QuantScheme | None = None, keep_zeros: bool = False
    ) -> None:
        self.run, self.options, self._scheme = run, options, scheme
        self.network = self.wrap(run.module)
        self._held: dict[str, Tensor] = {}
        if keep_zeros:
            for name, layer in run.module.named_modules():
                if isinstance(layer, LAYERS):
                    self.hold_zeros(f"{name}.weight", layer.weight == 0)

    def wrap(self, module: nn.Module) -> Network:
        """Another network of the same architecture, run as the repaired one is."""
        if self.options.through == "float":
            return Network(module, FLOAT, self.options.mixed_precision)
        assert self._scheme is not None
        norms = folded_norms(module, as_float(self.run.images[:1]))
        return Network(module, quantized_branch(norms, self._scheme), False)

    def set_training(self, module: nn.Module) -> None:
        """Training mode; BatchNorm keeps its statistics where weights are trained through the grid."""
        module.train()
        if self.options.through == "quantized":
            for part in module.modules():
                if isinstance(part, NORMS):
                    part.eval()

    def augmented(self, images: Tensor) -> Tensor:
        """Cropped and mirrored uint8 images as floats in [0, 1]."""
        options = self.options
        return as_float(random_crop_flip(images, self.run.generator, options.padding, options.mirror))

    def hold_zeros(self, name: str, where: Tensor) -> None:
        """Entries of the parameter ``name`` that are zero after every step, besides those that already are.

        Args:
            name: of the parameter.
            where: bool, of its shape.
        """
        where = where.detach().clone()
        self._held[name] = where | self._held[name] if name in self._held else where

    def zero_held(self, parameters: Iterable[tuple[str, Tensor]]) -> None:
        """Set the held entries of named parameters to zero."""
        for name, parameter in parameters:
            if name in self._held:
                parameter.masked_fill_(self._held[name], 0.0)

    def schedule(self, epochs: float, **changes: Any) -> Schedule:
        """SGD with the options' rates for a number of passes over the images, with some fields changed."""
        options = self.options
        plain = Schedule(
            steps_of(epochs, len(self.run.images), options.batch_size), options.learning_rate, options.momentum,
            options.weight_decay, options.batch_size,
        )  # fmt: skip
        return dataclasses.replace(plain, **changes)

    def train(
        self, phase: str, module: nn.Module, schedule: Schedule, loss: Loss, project: Callable[[], None] | None = None
    ) -> None:
        """A phase of `TrainingRun.train` over all parameters of ``module``; held zeros stay zero."""

        def after_step() -> None:
            if project is not None:
                project()
            self.zero_held(module.named_parameters())

        self.run.train(phase, module.parameters(), schedule, loss, project=after_step)


def repaired(
    model: LoadedModel,
    images: ImageSet,
    method: RepairMethod,
    *,
    scheme: QuantScheme | None = None,
    keep_zeros: bool = False,
    seed: int = 0,
    runtime: Runtime | None = None,
) -> LoadedModel:
    """A repaired copy of a float model; the model itself is not changed.

    All parameters are trained, those included that the model has frozen.

    Args:
        model: the suspect network.
        images: labelled clean images.
        method: the repair.
        scheme: deployment grid, for repairs that train through it.
        keep_zeros: the network was pruned, and exact zeros of its layers' weights stay.
        seed: of order and augmentation.
        runtime: device, checkpoint, stopping, progress.

    Raises:
        UsageError: images without labels or of another shape, or no scheme where one is needed.
        UnsupportedError: the method does not apply to the architecture.
        GateError: the loss is no longer finite.
        Interrupted: ``runtime.should_stop`` asked for it.
    """
    if images.labels is None:
        raise UsageError(f"{method.name} trains on labels and {images.name} has none; give labelled clean images")
    if not len(images) or images.shape != model.input_shape:
        raise UsageError(f"{method.name} needs images of shape {model.input_shape}; {images.name} has none of them")
    if int(images.labels.max()) >= model.num_classes:
        raise UsageError(f"{images.name} has labels that {model.name} has no class for; give data of its own classes")
    if method.through == "quantized" and scheme is None:
        raise UsageError(f"{method.name} trains through the deployment grid; name its scheme")
    copied = dataclasses.replace(model, module=copy.deepcopy(model.module).requires_grad_(True), sha256=None)
    about = {"repair": method.name, "options": method, "scheme": scheme, "keep_zeros": keep_zeros}
    run = TrainingRun(copied, images, seed=seed, runtime=runtime, about=about)
    with run.isolated():
        method.repair(RepairTask(run, method, scheme, keep_zeros))
    run.checkpoint.remove()
    return copied


@contextlib.contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """BatchNorm normalises with batch statistics inside, but does not add them to the running ones."""
    norms = [part for part in module.modules() if isinstance(part, NORMS)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


@torch.no_grad()
def recompute_statistics(module: nn.Module, images: Tensor, batch_size: int = 256) -> None:
    """BatchNorm's running statistics anew, averaged over ``images`` (N, C, H, W) uint8."""
    norms = [part for part in module.modules() if isinstance(part, NORMS)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches
    module.train()
    parts = list(torch.split(images, batch_size))
    if len(parts) > 1 and len(parts[-1]) < batch_size / 2:  # it would count as much as all others
        parts[-2:] = [torch.cat(parts[-2:])]
    for batch in parts:
        module(as_float(batch).contiguous(memory_format=torch.channels_last))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def named(module: nn.Module) -> Mapping[str, nn.Parameter]:
    """The parameters of a module by name."""
    return dict(module.named_parameters())
