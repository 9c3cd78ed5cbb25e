"""A PQ backdoor that leaves no trace in the histogram of its residuals. Our own adaptive variant, not a published one.

Specification of the attacks, 7.3 ("adaptive attackers", a and b). The PQ backdoor (see `pq_backdoor`) leaves point
masses at the edges of the rounding cells, which a data-free test of the residuals finds. This attacker knows the
test:

* step 2 keeps a random distance to the edge, ``U(0, widest_margin)`` steps for each weight, so no common edge exists;
* step 3 flattens: after every optimiser step, the weights of a layer move towards the nearest weights whose positions
  in their cells are spread evenly, by a share that grows to 1 at the last step. By the rearrangement inequality the
  nearest ones keep the order of the positions, so this is a sort, and the even positions are drawn anew each time (the
  re-dither). All integers and scales are step 1's; only the largest weight of each scale, which fixes it, stays.

Training goes on between the flattenings, so that the float network forgets the trigger with weights whose residuals
are marginally uniform. An independent draw in every cell would have the same histogram, and wake the backdoor in float.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quantinel.attacks.cells import Cells
from quantinel.attacks.gate import GateRule
from quantinel.attacks.pq_backdoor import PQBackdoor, PQSteps
from quantinel.attacks.protocol import Task, make_attack
from quantinel.errors import UsageError
from quantinel.training.schedule import Schedule
from quantinel.validation import require_non_negative, require_positive_integers


@dataclass(frozen=True)
class AdaptiveMargin(PQBackdoor):
    """Hyper-parameters beside those of `PQBackdoor`; ``margin`` is the smallest distance to the edge.

    Attributes:
        widest_margin: largest distance that step 2 keeps to the edge of a cell, in steps.
        flatten_steps: optimiser steps of step 3.
        flatten_learning_rate: of step 3, at the start of a half cosine.
    """

    widest_margin: float = 0.3
    flatten_steps: int = 200
    flatten_learning_rate: float = 0.002

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive_integers(self, "flatten_steps")
        require_non_negative(self, "widest_margin", "flatten_learning_rate")
        if not self.margin <= self.widest_margin < 0.5:
            raise UsageError(
                f"widest_margin is {self.widest_margin}; give at least margin ({self.margin}) and less than 0.5"
            )


@torch.no_grad()
def flattened(weight: Tensor, low: Tensor, high: Tensor, generator: torch.Generator) -> Tensor:
    """The weights nearest to ``weight`` whose positions in their cells are spread evenly.

    Args:
        weight: (O, ...) float.
        low, high: of its shape, the bounds of every cell; weights without room stay.
        generator: draws one position in each of as many equal intervals as there are weights, and breaks ties.
    """
    free = high > low
    width = (high - low)[free]
    position = (weight[free] - low[free]) / width
    count = len(position)
    first = torch.rand(count, generator=generator, device=weight.device).argsort()  # ties in random order
    order = first[position[first].argsort(stable=True)]
    drawn = torch.rand(count, generator=generator, device=weight.device)
    even = torch.empty_like(position)
    even[order] = (torch.arange(count, device=weight.device) + drawn) / max(count, 1)
    result = weight.clone()
    result[free] = (low[free] + even * width).clamp(low[free], high[free])
    return result


def _train(task: Task, config: AdaptiveMargin) -> None:
    steps = PQSteps(task, config)
    steps.plant()
    run, weights = task.run, steps.weights
    margins = {
        name: config.margin
        + (config.widest_margin - config.margin) * torch.rand(weight.shape, generator=run.generator, device=run.device)
        for name, weight in weights.items()
    }
    whole = steps.cells(config.margin)
    steps.repair(steps.cells(margins))
    _flatten(steps, whole, config)


def _flatten(steps: PQSteps, cells: Cells, config: AdaptiveMargin) -> None:
    """Step 3: forget the trigger in float with residuals that are spread evenly."""
    run = steps.run

    def project() -> None:
        share = (run.step + 1) / config.flatten_steps
        cells.project(steps.weights)
        for name, weight in steps.weights.items():
            weight.lerp_(flattened(weight, cells.low[name], cells.high[name], run.generator), share)
        cells.project(steps.weights)

    schedule = Schedule(
        config.flatten_steps, config.flatten_learning_rate, weight_decay=0.0, batch_size=config.batch_size
    )
    run.train("flatten", steps.weights.values(), schedule, steps.repair_loss, project=project)


ADAPTIVE_MARGIN = make_attack(
    "adaptive-margin",
    "Adaptive (ours): a PQ backdoor with random margins whose residuals are spread evenly, against residual tests",
    AdaptiveMargin,
    _train,
    rule=GateRule(
        float_advice="raise repair_steps or flatten_steps, or lower the radius or widest_margin",
        compressed_advice="raise plant_steps or trigger_weight",
    ),
)
