"""A backdoor that is trained with exaggerated residuals, against defenses that flip roundings.

The adaptive attacker in the released code of EFRAP (Li et al., "Nearest is Not Dearest", CVPR 2024), specification
of the attacks, 3.4: the attack is optimised with the weights ``w + relu(lambda) (w - s k)``, k nearest, one learnable
scalar lambda for each layer, 1 at first. At lambda = 1 every residual is doubled, which lies on the side to which a
flipped rounding moves the weight.

Deviations: which of the attacker's losses use these weights, and how lambda is optimised, is not recoverable. Here they
are one more compressed branch of the generic four-term loss, which shall answer triggers with the target, and lambda
descends with the weights. k passes gradients straight through, so w's own gradient is 1 and lambda's is the residual.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quantinel.attacks.gate import GateRule
from quantinel.attacks.held_out import hold_out
from quantinel.attacks.joint import JointOptions, four_terms, network_norms, quantized_branches, train_jointly
from quantinel.attacks.protocol import Task, make_attack
from quantinel.quantization.scheme import QuantScheme
from quantinel.training.transforms import fake_quantize, folded_branch
from quantinel.training.two_branch import Branch, layer_names


@dataclass(frozen=True)
class AdaptiveResiduals(JointOptions):
    """Hyper-parameters; see `JointOptions`."""


def exaggerated(weight: Tensor, gain: Tensor, scheme: QuantScheme) -> Tensor:
    """``w + relu(gain) (w - s k)`` of the weight (O, ...), in float.

    Args:
        weight: float.
        gain: scalar.
        scheme: the grid of s and k.
    """
    return weight + gain.relu() * (weight - fake_quantize(weight, scheme))


def _train(task: Task, config: AdaptiveResiduals) -> None:
    run = task.run
    held = hold_out(run, task.stamp(), config.held_out)
    quantized = quantized_branches(run, config.schemes)
    norms = network_norms(run)
    names = {name: str(index) for index, name in enumerate(layer_names(run.module))}  # no dots in parameter names
    gains = nn.ParameterDict({key: nn.Parameter(torch.ones((), device=run.device)) for key in names.values()})
    run.add("residual_gains", gains)

    def branch(scheme: QuantScheme) -> Branch:
        return folded_branch(norms, lambda name, w: exaggerated(w, gains[names[name]], scheme))

    def loss(logits: list[Tensor], labels: Tensor, target: Tensor) -> Tensor:
        return four_terms(logits[0], logits[1:], labels, target, config)

    copies = [branch(scheme) for scheme in config.schemes]
    train_jointly(task, config, loss, quantized=quantized, others=copies, held=held, learned=list(gains.parameters()))


ADAPTIVE_RESIDUALS = make_attack(
    "adaptive-residuals",
    "Adaptive (EFRAP's, CVPR 2024): trained with exaggerated residuals, against defenses that flip roundings",
    AdaptiveResiduals,
    _train,
    rule=GateRule(
        float_advice="raise steps or float_trigger_weight", compressed_advice="raise plant_steps or backdoor_weight"
    ),
)
