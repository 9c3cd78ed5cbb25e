"""EFRAP as its authors released it: Adam on relaxed roundings, layer after layer.

Li et al., CVPR 2024; objective in `efrap_objective`; schedule, initialisation and commit rule from the
specification of the defenses, 1.2 and 1.4 (read there from the released code). Per weight one free parameter
alpha, h = sigmoid(alpha), initialised so that the soft weight equals the float weight; 10,000 Adam steps at 1e-3
on random batches of 32 cached inputs; a weight rounds up where alpha >= 0. The chain that is compared includes the
ReLU behind the layer and its activation quantizer, as there.

Deviations, because they are properties of this pipeline and not of the method: BatchNorm is folded, scales are
symmetric per channel by the scheme's rule instead of an asymmetric least-squares search, and no layer is promoted
to 8 bits silently. ``normalization="paper"`` divides each term by its number of elements, measures truncation
errors in steps and sets all weights to 1, as the paper's text (not its code) suggests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from quantinel.defenses.efrap_objective import flip_costs, flipped_is_ceil
from quantinel.quantization.reconstruction import Chain, LayerProblem
from quantinel.quantization.rounding import broadcast_scale
from quantinel.validation import require_choice, require_non_negative, require_positive_integers

_FRACTION_MARGIN = 1e-6
"""logit(0) is infinite in the released code; clamping keeps the same sign without infinities."""


@dataclass(frozen=True)
class EFRAPReleased:
    """Gradient form of EFRAP.

    Attributes:
        iterations: Adam steps per layer.
        learning_rate: of Adam.
        batch_size: cached inputs per step.
        flip_weight: weight of L_F; 0 is reconstruction only.
        activation_weight: weight of L_A; 0 is flipping only.
        binary_weight: weight of L_P.
        normalization: "released" sums L_F and L_P over weights in weight units; "paper" averages every term.
        seed: of the batches.
    """

    iterations: int = 10_000
    learning_rate: float = 1e-3
    batch_size: int = 32
    flip_weight: float = 1.0
    activation_weight: float = 1.0
    binary_weight: float = 0.01
    normalization: Literal["released", "paper"] = "released"
    seed: int = 1005

    def __post_init__(self) -> None:
        require_non_negative(self, "learning_rate", "flip_weight", "activation_weight", "binary_weight", "iterations")
        require_positive_integers(self, "batch_size")
        require_choice(self, "normalization", ("released", "paper"))

    name: ClassVar[str] = "efrap-released"
    needs: ClassVar[Literal["activations"]] = "activations"

    def choose(self, problem: LayerProblem) -> Tensor:
        """Optimise the relaxed roundings of one layer and commit them; (O, ...) int8."""
        assert problem.chain is not None
        with torch.inference_mode(False), torch.enable_grad():
            alpha = self._optimise(problem, problem.chain)
        cell = problem.cell
        return torch.where(alpha >= 0, cell.ceil, cell.floor).to(torch.int8)

    def _optimise(self, problem: LayerProblem, chain: Chain) -> Tensor:
        cell, scheme = problem.cell, problem.scheme
        scale = broadcast_scale(problem.scale, problem.weight).clone()
        floor, free = cell.floor.clone(), cell.free.clone()
        fraction = cell.fraction.clamp(_FRACTION_MARGIN, 1 - _FRACTION_MARGIN)
        alpha = torch.logit(fraction).clone().requires_grad_(True)
        flipped = flipped_is_ceil(problem).float().clone()
        cost = flip_costs(problem, "absolute").clone()
        if self.normalization == "paper":
            cost = cost / scale / cost.numel()
        inputs, targets = chain.inputs.clone(), chain.targets.clone()
        optimiser = torch.optim.Adam([alpha], lr=self.learning_rate)
        generator = torch.Generator().manual_seed(self.seed + problem.index)
        for _ in range(self.iterations):
            chosen = torch.randint(len(inputs), (self.batch_size,), generator=generator)
            h = torch.sigmoid(alpha)
            soft = scale * (floor + h * free).clamp(scheme.code_min, scheme.code_max)
            difference = chain.forward(inputs[chosen], soft) - targets[chosen]
            reconstruction = difference.square().sum(dim=chain.channel_dimension).mean()
            if self.normalization == "paper":
                reconstruction = reconstruction / targets.shape[chain.channel_dimension]
            flip = (cost * (-flipped * torch.log(h + 1e-8) - (1 - flipped) * torch.log(1 - h + 1e-8))).sum()
            binary = 1 - (2 * h - 1).square()
            penalty = binary.mean() if self.normalization == "paper" else self.binary_weight * binary.sum()
            loss = self.activation_weight * reconstruction + self.flip_weight * flip + penalty
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        return alpha.detach()
