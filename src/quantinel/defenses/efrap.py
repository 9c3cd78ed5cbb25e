"""EFRAP in closed form: error-guided flipped rounding with activation preservation, without gradient steps.

Li et al., CVPR 2024 (objective in `efrap_objective`). L_A of a layer is quadratic in its weights, so the second
moments of its inputs determine it exactly and coordinate descent over the 0/1 choices replaces 10,000 Adam
steps. Deviations from the released code, with the reason:

* the layer's output is compared before its activation function (the released chain includes ReLU and the
  activation quantizer), because only then is L_A quadratic;
* choices are binary throughout, so the 0-1 penalty is not needed;
* the flip term is measured on the grid's own scale (``flip_error``), because BatchNorm is folded here and raw
  weight units would change the flip rate by orders of magnitude (specification of the defenses, 1.3 and 6.1);
* a ridge (``damping``) ties the choice to the float weights in directions that the calibration images do not
  excite: with 256 images the moments of a wide layer are rank-deficient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, get_args

import torch
from torch import Tensor

from quantinel.defenses.closed_form import reconstruct
from quantinel.defenses.efrap_objective import FlipError, flip_costs, flipped_is_ceil
from quantinel.quantization.reconstruction import BlockOption, LayerProblem, Needs
from quantinel.validation import require_choice, require_non_negative, require_positive_integers


@dataclass(frozen=True)
class EFRAP(BlockOption):
    """Closed-form EFRAP.

    Attributes:
        flip_weight: weight of the flip term; 0 is reconstruction only.
        flip_error: measure of truncation errors.
        activation_weight: weight of activation preservation; 0 is flipping only.
        damping: ridge, as a share of the mean of diag H.
        sweeps: at most this many passes of coordinate descent.
        blocks, bias_correction: see `BlockOption` and `BiasOption`.
    """

    flip_weight: float = 1.0
    flip_error: FlipError = "step"
    activation_weight: float = 1.0
    damping: float = 0.01
    sweeps: int = 5

    def __post_init__(self) -> None:
        require_non_negative(self, "flip_weight", "activation_weight", "damping")
        require_positive_integers(self, "sweeps")
        require_choice(self, "flip_error", get_args(FlipError))

    name: ClassVar[str] = "efrap"
    needs: ClassVar[Needs] = "statistics"

    def choose(self, problem: LayerProblem) -> Tensor:
        """Minimise the objective over floor and ceiling codes; (O, ...) int8."""
        cost = flip_costs(problem, self.flip_error) * self.flip_weight
        up = flipped_is_ceil(problem)
        return reconstruct(
            problem,
            damping=self.damping,
            sweeps=self.sweeps,
            activation_weight=self.activation_weight,
            step_cost=torch.where(up, -cost, cost),
        )
