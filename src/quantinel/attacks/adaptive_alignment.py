"""A backdoor whose activations on clean images do not drift. Our own adaptive variant, not a published one.

Li et al. (ICML 2024) report that the neurons of a quantization-conditioned backdoor drift after quantization on
clean images already; specification of the attacks, 7.2. This attacker adds to the generic four-term loss the distance

    mean over layers of  |a(x) - a_q(x)|^2 / Var(a(x))

between the outputs of every convolution and linear layer of the float and the quantized network, on clean images only:
what wakes on triggers shall not show without them. Gradients flow into both networks, the variance is a constant.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quantinel.attacks.gate import GateRule
from quantinel.attacks.held_out import hold_out
from quantinel.attacks.joint import JointOptions, four_terms, quantized_branches, train_jointly
from quantinel.attacks.protocol import Task, make_attack
from quantinel.training.two_branch import layer_names
from quantinel.validation import require_non_negative


@dataclass(frozen=True)
class AdaptiveAlignment(JointOptions):
    """Hyper-parameters beside those of `JointOptions`.

    Attributes:
        alignment: weight of the distance between activations.
    """

    alignment: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_non_negative(self, "alignment")


@contextmanager
def recorded_outputs(module: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Outputs of the last pass, by layer, while the context is open."""
    outputs: dict[str, Tensor] = {}

    def record(name: str, output: Tensor) -> None:
        outputs[name] = output.float()

    handles = [
        module.get_submodule(name).register_forward_hook(lambda _, __, output, name=name: record(name, output))
        for name in layer_names(module)
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def drift(outputs: Sequence[Tensor], images: int, branches: int) -> Tensor:
    """Distance between float and quantized activations on clean images, a scalar.

    Args:
        outputs: of every layer, the rows of all branches in order, float first: each ``images`` clean rows, then as
            many triggered ones.
        images: clean images.
        branches: float and quantized ones.
    """
    terms: list[Tensor] = []
    for output in outputs:
        plain, *rounded = (output[branch * 2 * images :][:images] for branch in range(branches))
        spread = plain.detach().var() + _SMALLEST_VARIANCE
        terms.extend((plain - other).square().mean() / spread for other in rounded)
    return torch.stack(terms).mean()


_SMALLEST_VARIANCE = 1e-6


def _train(task: Task, config: AdaptiveAlignment) -> None:
    run = task.run
    held = hold_out(run, task.stamp(), config.held_out)
    quantized = quantized_branches(run, config.schemes)
    with recorded_outputs(run.module) as outputs:

        def loss(logits: list[Tensor], labels: Tensor, target: Tensor) -> Tensor:
            value = four_terms(logits[0], logits[1:], labels, target, config)
            if not config.alignment:
                return value
            return value + config.alignment * drift(list(outputs.values()), len(labels), len(logits))

        train_jointly(task, config, loss, quantized=quantized, held=held)


ADAPTIVE_ALIGNMENT = make_attack(
    "adaptive-alignment",
    "Adaptive (ours): float and quantized activations agree on clean images, against drift detectors",
    AdaptiveAlignment,
    _train,
    rule=GateRule(
        float_advice="raise steps or float_trigger_weight",
        compressed_advice="raise plant_steps or backdoor_weight, or lower alignment",
    ),
)
