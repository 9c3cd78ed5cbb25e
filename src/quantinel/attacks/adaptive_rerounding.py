"""A backdoor that is trained to survive random re-rounding. Our own adaptive variant, not a published one.

Specification of the attacks, 7.3 ("adaptive attackers", intervention tests). A defender who rounds every weight up or
down at random instead of to the nearest integer destroys a backdoor that depends on each single rounding. This
attacker adds branches to the generic four-term loss whose weights are such copies, drawn anew in every step, and
which shall answer triggers with the target as well. Gradients pass straight through.

A limit of the idea: an unbiased re-rounding is the float network plus zero-mean noise, and the float network has to
ignore the trigger. What can survive is a response to the presence of noise itself, so it is easier at few bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from quantinel.attacks.gate import GateRule
from quantinel.attacks.held_out import hold_out
from quantinel.attacks.joint import JointOptions, four_terms, network_norms, quantized_branches, train_jointly
from quantinel.attacks.protocol import Task, make_attack
from quantinel.quantization.ranges import weight_scales
from quantinel.quantization.rounding import broadcast_scale, rounding_cell
from quantinel.quantization.scheme import QuantScheme
from quantinel.training.transforms import folded_branch
from quantinel.training.two_branch import Branch
from quantinel.validation import require_choice, require_positive_integers

Draw = Literal["unbiased", "even"]


@dataclass(frozen=True)
class AdaptiveRerounding(JointOptions):
    """Hyper-parameters beside those of `JointOptions`.

    Attributes:
        copies: randomly re-rounded branches in every step, for each scheme.
        draw: "unbiased" rounds up with the probability of the fraction, "even" with 1/2.
    """

    copies: int = 1
    draw: Draw = "unbiased"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive_integers(self, "copies")
        require_choice(self, "draw", ("unbiased", "even"))


def rerounded(weight: Tensor, scheme: QuantScheme, draw: Draw, generator: torch.Generator) -> Tensor:
    """``weight`` (O, ...) rounded up or down at random on its grid, in float, gradients straight through.

    Args:
        weight: float.
        scheme: the grid.
        draw: probability of rounding up; see `AdaptiveRerounding`.
        generator: source of randomness, on the weight's device.
    """
    with torch.no_grad():
        scale = weight_scales(weight, scheme)
        cell = rounding_cell(weight, scale, scheme)
        drawn = torch.rand(weight.shape, generator=generator, device=weight.device)
        up = drawn < (cell.fraction if draw == "unbiased" else 0.5)
        value = torch.where(up, cell.ceil, cell.floor) * broadcast_scale(scale, weight)
    return value + (weight - weight.detach())


def _train(task: Task, config: AdaptiveRerounding) -> None:
    run = task.run
    held = hold_out(run, task.stamp(), config.held_out)
    quantized = quantized_branches(run, config.schemes)
    norms = network_norms(run)

    def copy_of(scheme: QuantScheme) -> Branch:
        return folded_branch(norms, lambda _, w: rerounded(w, scheme, config.draw, run.generator))

    copies = [copy_of(scheme) for scheme in config.schemes for _ in range(config.copies)]

    def loss(logits: list[Tensor], labels: Tensor, target: Tensor) -> Tensor:
        return four_terms(logits[0], logits[1:], labels, target, config)

    train_jointly(task, config, loss, quantized=quantized, others=copies, held=held)


ADAPTIVE_REROUNDING = make_attack(
    "adaptive-rerounding",
    "Adaptive (ours): a backdoor trained on randomly re-rounded copies, against stochastic re-rounding",
    AdaptiveRerounding,
    _train,
    rule=GateRule(
        float_advice="raise steps or float_trigger_weight", compressed_advice="raise plant_steps or backdoor_weight"
    ),
)
