"""AdaRound: reconstruction alone, the ablation that says what EFRAP's flip term is worth.

Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", ICML 2020, equations 21 to 25: rectified
sigmoid (`relaxed_rounding`), regulariser lambda * sum_i 1 - |2 h_i - 1|^beta with lambda = 0.01, beta annealed from
high to low, squared error behind the activation function, quantized-prefix inputs against float outputs, 10,000 Adam
steps on batches of 32. Authors of EFRAP note that such reconstruction alone sometimes removes a backdoor
(specification of the defenses, 1.6 and 6.5 [R]).

Choices where the paper gives no number, as in the common implementations (BRECQ's among them): beta falls linearly
from 20 to 2 after a warm-up of a fifth of the steps, during which the regulariser is off. Deviations: the chain
includes the activation quantizer, as that of the released EFRAP does, because activations are quantized in the file
that is deployed; scales follow the scheme's rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from quantinel.defenses.chain_training import ChainOptions, Reconstruction, train_chain
from quantinel.defenses.relaxed_rounding import RelaxedRounding, committed
from quantinel.quantization.reconstruction import LayerProblem, Needs
from quantinel.validation import require_non_negative, require_rate

_STRETCH = 0.1
_SHARPEST, _SOFTEST = 20.0, 2.0


@dataclass(frozen=True)
class AdaRound(ChainOptions):
    """Reconstruction on relaxed roundings.

    Attributes:
        binary_weight: lambda of the regulariser.
        warm_up: share of the steps without it.
    """

    binary_weight: float = 0.01
    warm_up: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        require_non_negative(self, "binary_weight")
        require_rate(self, "warm_up")

    name: ClassVar[str] = "adaround"
    needs: ClassVar[Needs] = "activations"

    def choose(self, problem: LayerProblem) -> Tensor:
        """Optimise the relaxed roundings of one layer and commit them; (O, ...) int8."""
        assert problem.chain is not None
        with torch.inference_mode(False), torch.enable_grad():
            rounding = RelaxedRounding.of(problem, _STRETCH)
            alpha = train_chain(
                problem,
                self,
                Reconstruction.of(problem.chain),
                _Objective(self, rounding),
                rounding.start(problem.cell.fraction),
            )
        return committed(alpha, problem.cell)

    def beta(self, step: int) -> float | None:
        """Exponent of the regulariser at a step; None during the warm-up."""
        begin = self.warm_up * self.iterations
        if step < begin:
            return None
        return _SHARPEST + (_SOFTEST - _SHARPEST) * (step - begin) / max(1.0, self.iterations - begin)


@dataclass(frozen=True)
class _Objective:
    options: AdaRound
    rounding: RelaxedRounding

    def weight(self, parameter: Tensor) -> Tensor:
        return self.rounding.soft_weight(self.rounding.relaxed(parameter))

    def penalty(self, parameter: Tensor, step: int) -> Tensor | None:
        beta = self.options.beta(step)
        if beta is None:
            return None
        h = self.rounding.relaxed(parameter)
        return self.options.binary_weight * (1 - (2 * h - 1).abs().pow(beta)).sum()
