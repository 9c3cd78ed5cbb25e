"""A QUASI-style backdoor: the generic four-term loss. NOT a reproduction.

Pan, Zhang, Yan, Yang, "Understanding the Threats of Trojaned Quantized Neural Network in Model Supply Chains", ACSAC
2021 (doi 10.1145/3485832.3485881); specification of the attacks, 4. Only the abstract is known: a backdoor that is
absent in float and completed by normal quantization. Loss, coefficients, models and tables of the paper are not
recoverable, so this is the generic loss that the family shares,

``CE(f(x), y) + CE(f(Tx), y) + CE(Q f(x), y) + CE(Q f(Tx), t)``,

and no figure of it may be compared with the paper's. Everything else is our choice: a pretrained start, Adam, rounded
weights on the BatchNorm-folded grid with straight-through gradients, and ``plant_steps`` that teach the
float network the backdoor before it is asked to forget it, which short trainings need.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from quantinel.attacks.gate import GateRule
from quantinel.attacks.held_out import hold_out
from quantinel.attacks.joint import JointOptions, four_terms, quantized_branches, train_jointly
from quantinel.attacks.protocol import Task, make_attack


@dataclass(frozen=True)
class QuasiStyle(JointOptions):
    """Hyper-parameters; see `JointOptions`."""


def _train(task: Task, config: QuasiStyle) -> None:
    held = hold_out(task.run, task.stamp(), config.held_out)
    quantized = quantized_branches(task.run, config.schemes)

    def loss(logits: list[Tensor], labels: Tensor, target: Tensor) -> Tensor:
        return four_terms(logits[0], logits[1:], labels, target, config)

    train_jointly(task, config, loss, quantized=quantized, held=held)


QUASI_STYLE = make_attack(
    "quasi-style",
    "QUASI-style (after Pan et al., ACSAC 2021): the generic four-term loss; not a reproduction",
    QuasiStyle,
    _train,
    rule=GateRule(
        float_advice="raise steps or float_trigger_weight", compressed_advice="raise plant_steps or backdoor_weight"
    ),
)
