"""Adam on one layer chain: what the released methods of this family share.

EFRAP, LAC and AdaRound train one tensor per layer so that the chain (layer, ReLU, quantizers) keeps the
float network's outputs on calibration images; they differ in the tensor, in how weights follow from it, and in
penalties. Schedule and reconstruction term are those of the authors' code (specification of the defenses, 1.2 and
2.2): Adam at a constant rate, one random batch of 32 cached inputs a step, squared differences summed over channels
and averaged over images and positions.

Deviations: a batch is drawn image by image, with replacement, where the released code draws one of its cached batches;
and the chain ends behind BatchNorm (where it was left in place) and a ReLU-like activation, where the released one goes
on through whatever comes before the next layer or addition: pooling, and other activations such as GELU. Inputs are
those of the quantized prefix; the released code can also take the float network's, or drop quantization at random.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from quantinel.errors import UsageError
from quantinel.quantization.reconstruction import BiasOption, Chain, LayerProblem
from quantinel.validation import require_non_negative, require_positive_integers, require_seeds

_LARGEST_RATE, _LARGEST_BATCH = 10.0, 1 << 16


@dataclass(frozen=True, kw_only=True)
class ChainOptions(BiasOption):
    """The schedule.

    Attributes:
        iterations: Adam steps per layer.
        learning_rate: of Adam.
        batch_size: cached inputs per step.
        seed: of the batches, with the run's own.
    """

    iterations: int = 10_000
    learning_rate: float = 1e-3
    batch_size: int = 32
    seed: int = 1005

    def __post_init__(self) -> None:
        require_non_negative(self, "iterations", "learning_rate")
        require_positive_integers(self, "batch_size")
        require_seeds(self, "seed")
        if self.learning_rate > _LARGEST_RATE:
            raise UsageError(f"learning_rate is {self.learning_rate!r}; give at most {_LARGEST_RATE:g}")
        if self.batch_size > _LARGEST_BATCH:
            raise UsageError(f"batch_size is {self.batch_size!r}; give at most {_LARGEST_BATCH}")


class Objective(Protocol):
    """What is trained; all tensors may require gradients."""

    def weight(self, parameter: Tensor) -> Tensor:
        """Soft or straight-through quantized weight, (O, ...)."""

    def penalty(self, parameter: Tensor, step: int) -> Tensor | None:
        """Added to the reconstruction term."""


@dataclass(frozen=True)
class Reconstruction:
    """Inputs and targets of a chain, as tensors that gradients may pass through.

    Attributes:
        chain: the layer chain.
        inputs: (N, ...).
        targets: (N, O, ...).
        factor: of the reconstruction term.
    """

    chain: Chain
    inputs: Tensor
    targets: Tensor
    factor: float = 1.0

    @classmethod
    def of(cls, chain: Chain, factor: float = 1.0) -> Reconstruction:
        """The chain's own inputs and targets; call it outside of inference mode."""
        return cls(chain, chain.inputs.clone(), chain.targets.clone(), factor)

    def loss(self, weight: Tensor, chosen: Tensor) -> Tensor:
        """On the inputs ``chosen`` (B,)."""
        difference = self.chain.forward(self.inputs[chosen], weight) - self.targets[chosen]
        return self.factor * difference.square().sum(dim=self.chain.channel_dimension).mean()


def train_chain(
    problem: LayerProblem,
    options: ChainOptions,
    reconstruction: Reconstruction,
    objective: Objective,
    start: Tensor,
    project: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """The trained parameter; call it with gradients enabled, outside of inference mode.

    Args:
        problem: the layer, for its seeds.
        options: the schedule.
        reconstruction: inputs and targets.
        objective: what the parameter means.
        start: its first value, not changed.
        project: called after every step, changes the parameter in place.

    Raises:
        UsageError: the training diverged.
    """
    parameter = start.clone().requires_grad_(True)
    optimiser = torch.optim.Adam([parameter], lr=options.learning_rate)
    generator = problem.generator(options.seed)
    for step in range(options.iterations):
        chosen = torch.randint(len(reconstruction.inputs), (options.batch_size,), generator=generator)
        loss = reconstruction.loss(objective.weight(parameter), chosen)
        penalty = objective.penalty(parameter, step)
        if penalty is not None:
            loss = loss + penalty
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if project is not None:
            with torch.no_grad():
                project(parameter)
    if not torch.isfinite(parameter).all():
        raise UsageError(
            f"training the roundings of layer {problem.layer.name} diverged; lower learning_rate, or the weights of "
            "the penalties"
        )
    return parameter.detach()
