"""I-BAU: unlearn the universal perturbation that disturbs the network most, through the implicit hypergradient.

Zeng et al., "Adversarial Unlearning of Backdoors via Implicit Hypergradient", ICLR 2022:

    min over w of  H(d*(w), w),    d*(w) = argmax over d of  CE(f_w(x + d), f_w(x)) - penalty |d|^2,

with H the cross-entropy to the true labels of a batch in which 1 % of the images carry d. The gradient of H through d*
is that of a fixed-point iteration (Grazzi et al., ICML 2020) with the map d -> d - map_rate grad_d(inner loss), in K
steps.

Defaults are BackdoorBench's (specification of the defenses, 3.9): 5 rounds, K = 5, Adam 1e-4 for w, d trained over one
pass; neither d nor the images are projected or clipped, which is commented out there. The network stays in evaluation
mode, and images are not augmented. Deviation: d is in pixels in [0, 1] here and in normalised units there. With the
usual deviation of a channel of about 1/4, a rate of 1 for normalised units is one of 1/16 for pixels, and a penalty of
1 one of 16: so SGD 10 becomes 0.625, the map's rate 0.1 becomes 0.00625, and the penalty 0.001 becomes 0.016.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantinel.data.images import as_float
from quantinel.defenses.repair import RepairMethod, RepairTask
from quantinel.training.schedule import steps_of
from quantinel.validation import require_non_negative, require_positive_integers, require_rate


@dataclass(frozen=True)
class IBAU(RepairMethod):
    """Options.

    Attributes:
        learning_rate, weight_decay: of Adam, at a constant rate.
        rounds: a new perturbation each.
        outer_steps: batches a round; 0 for a pass over the images.
        fixed_point_steps: K.
        inner_learning_rate: of the perturbation.
        inner_batches: batches a round that the perturbation is trained on; 0 for a pass over the images.
        map_rate: of the map whose fixed point the perturbation is.
        penalty: of the squared norm of the perturbation.
        radius: largest L2 norm of the perturbation; 0 for none (the authors have 10, in normalised units).
        portion: share of a batch that carries it, at least one image.
    """

    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    rounds: int = 5
    outer_steps: int = 0
    fixed_point_steps: int = 5
    inner_learning_rate: float = 0.625
    inner_batches: int = 0
    map_rate: float = 0.00625
    penalty: float = 0.016
    radius: float = 0.0
    portion: float = 0.01
    name: ClassVar[str] = "i-bau"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive_integers(self, "rounds", "fixed_point_steps")
        require_non_negative(self, "outer_steps", "inner_learning_rate", "inner_batches", "map_rate", "penalty")
        require_non_negative(self, "radius")
        require_rate(self, "portion")

    def repair(self, task: RepairTask) -> None:
        """Rounds of finding and unlearning a perturbation."""
        run, module, network = task.run, task.run.module, task.network
        kept = _Perturbation(run.images.shape[1:])
        run.add("perturbation", kept)
        module.eval()
        batches = self.outer_steps or steps_of(1.0, len(run.images), self.batch_size)

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            if run.step % batches == 0:
                kept.value.data = self._perturbation(task)
            batch = as_float(images)
            carrying = max(1, int(self.portion * len(batch)))
            perturbation = kept.value.detach().clone().requires_grad_()

            def outer(d: Tensor) -> Tensor:
                stamped = torch.cat([batch[:carrying] + d, batch[carrying:]])
                return F.cross_entropy(network(stamped), labels)

            value = outer(perturbation)
            (direct,) = torch.autograd.grad(value, perturbation, retain_graph=True)
            mapped = perturbation - self.map_rate * self._inner_gradient(network, batch, perturbation)
            adjoint = fixed_point(mapped, perturbation, direct, self.fixed_point_steps)
            # The gradient of this sum in w is the hypergradient: that of H, and v times that of the map.
            return value + (mapped * adjoint.detach()).sum() - (mapped.detach() * adjoint.detach()).sum()

        schedule = task.schedule(1.0, steps=self.rounds * batches, optimiser="adam", decay="constant")
        task.train("unlearn", module, schedule, loss)

    def _inner_gradient(self, network: Callable[[Tensor], Tensor], batch: Tensor, d: Tensor) -> Tensor:
        """Gradient in ``d`` of the inner loss on a batch, differentiable."""
        with torch.no_grad():
            answers = network(batch).argmax(1)
        loss = self.penalty * d.square().sum() - F.cross_entropy(network(batch + d), answers)
        (gradient,) = torch.autograd.grad(loss, d, create_graph=True)
        return gradient

    def _perturbation(self, task: RepairTask) -> Tensor:
        """A perturbation (1, C, H, W) trained against the network as it is."""
        run = task.run
        d = torch.zeros(1, *run.images.shape[1:], device=run.device, requires_grad=True)
        order = torch.randperm(len(run.images), generator=run.generator, device=run.device)
        parts = torch.split(order, self.batch_size)
        for chosen in parts[: self.inner_batches or None]:
            gradient = self._inner_gradient(task.network, as_float(run.images[chosen]), d).detach()
            d = (d.detach() - self.inner_learning_rate * gradient).requires_grad_()
        d = d.detach()
        return d * min(1.0, self.radius / max(float(d.norm()), 1e-12)) if self.radius else d


class _Perturbation(nn.Module):
    """The perturbation of the running round, so that a checkpoint holds it."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(1, *shape), requires_grad=False)


def fixed_point(mapped: Tensor, d: Tensor, direct: Tensor, steps: int) -> Tensor:
    """``v = J^T v + g`` iterated from zero, J the Jacobian of the map in ``d``.

    Args:
        mapped: value of the map, with a graph to ``d``.
        d: where it was taken.
        direct: g, gradient of the outer loss in ``d``.
        steps: K.
    """
    v = torch.zeros_like(direct)
    for _ in range(steps):
        (through,) = torch.autograd.grad(mapped, d, grad_outputs=v, retain_graph=True)
        v = through + direct
    return v
