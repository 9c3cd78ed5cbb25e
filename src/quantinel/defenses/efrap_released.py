"""EFRAP as its authors released it: Adam on relaxed roundings, layer after layer.

Li et al., CVPR 2024; objective in `efrap_objective`; schedule, initialisation and commit rule from the
specification of the defenses, 1.2 and 1.4 (read there from the released code). Per weight one free parameter
alpha, h = sigmoid(alpha), initialised so that the soft weight equals the float weight; 10,000 Adam steps at 1e-3
on random batches of 32 cached inputs; a weight rounds up where alpha >= 0. The chain that is compared includes
BatchNorm where it was left in place, the ReLU behind it and its activation quantizer, as there.

Deviations, because they are properties of this pipeline and not of the method: BatchNorm is folded unless the scheme
says otherwise (where it is not, the layer's own outputs have a quantizer as well, and so have the ends of residual
branches); scales are symmetric per channel by the scheme's rule instead of an asymmetric least-squares search; no layer
is promoted to 8 bits silently; activations are quantized, with ranges of calibration instead of moving averages; and
the calibration images are the caller's, without augmentation, instead of 1,024 augmented ones.
``normalization="paper"`` divides each term by its number of elements, measures truncation errors in steps and sets
all weights to 1, as the paper's text (not its code) suggests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from quantinel.defenses.chain_training import ChainOptions, Reconstruction, train_chain
from quantinel.defenses.efrap_objective import Guidance, flipped_is_ceil, guided
from quantinel.defenses.relaxed_rounding import RelaxedRounding, committed
from quantinel.quantization.reconstruction import LayerProblem, Needs
from quantinel.validation import require_choice, require_non_negative


@dataclass(frozen=True)
class EFRAPReleased(ChainOptions):
    """Gradient form of EFRAP.

    Attributes:
        flip_weight: weight of L_F; 0 is reconstruction only.
        activation_weight: weight of L_A; 0 is flipping only.
        binary_weight: weight of L_P; None is 0.01 in the released form and 1 in the paper's.
        normalization: "released" sums L_F and L_P over weights in weight units; "paper" averages every term.
        guidance: which truncation error guides a weight: its own, or its neuron's; see `efrap_objective`.
    """

    flip_weight: float = 1.0
    activation_weight: float = 1.0
    binary_weight: float | None = None
    normalization: Literal["released", "paper"] = "released"
    guidance: Guidance = "weight"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_non_negative(self, "flip_weight", "activation_weight")
        if self.binary_weight is not None:
            require_non_negative(self, "binary_weight")
        require_choice(self, "normalization", ("released", "paper"))
        require_choice(self, "guidance", get_args(Guidance))

    name: ClassVar[str] = "efrap-released"
    needs: ClassVar[Needs] = "activations"

    def choose(self, problem: LayerProblem) -> Tensor:
        """Optimise the relaxed roundings of one layer and commit them; (O, ...) int8."""
        assert problem.chain is not None
        with torch.inference_mode(False), torch.enable_grad():
            rounding = RelaxedRounding.of(problem)
            paper = self.normalization == "paper"
            channels = problem.chain.targets.shape[problem.chain.channel_dimension] if paper else 1
            reconstruction = Reconstruction.of(problem.chain, self.activation_weight / channels)
            objective = _Objective(self, rounding, self._costs(problem), flipped_is_ceil(problem).float().clone())
            alpha = train_chain(problem, self, reconstruction, objective, rounding.start(problem.cell.fraction))
        return committed(alpha, problem.cell)

    def _costs(self, problem: LayerProblem) -> Tensor:
        """Factors of the weights' cross-entropies in L_F."""
        if self.normalization == "paper":
            steps = guided(problem.steps_off(), self.guidance) * problem.cell.free
            return (steps / steps.numel()).clone()
        return (guided(problem.cell.error, self.guidance) * problem.cell.free).clone()


@dataclass(frozen=True)
class _Objective:
    options: EFRAPReleased
    rounding: RelaxedRounding
    cost: Tensor
    flipped: Tensor

    def weight(self, parameter: Tensor) -> Tensor:
        return self.rounding.soft_weight(self.rounding.relaxed(parameter))

    def penalty(self, parameter: Tensor, step: int) -> Tensor:
        h, r = self.rounding.relaxed(parameter), self.flipped
        flip = (self.cost * (-r * torch.log(h + 1e-8) - (1 - r) * torch.log(1 - h + 1e-8))).sum()
        binary = 1 - (2 * h - 1).square()
        paper, weight = self.options.normalization == "paper", self.options.binary_weight
        if weight is None:
            weight = 1.0 if paper else 0.01
        return self.options.flip_weight * flip + weight * (binary.mean() if paper else binary.sum())
