"""QVec: push the weights away from where rounding would take them, then round.

Yang, Tsai, Yu, arXiv 2606.20254 (2026). Reconstructed from the abstract (specification of the defenses, 4.1, evidence
[I]): with the vector tau = Q(W) - W that carries the malicious behaviour, deploy Q(W - strength * tau). One secondary
note words it with the opposite sign, which would move weights towards Q(W); the sign here is the one that the
abstract's purpose implies. On a fixed grid a weight flips iff its distance from the grid exceeds 1 / (2 (1 +
strength)) steps: with uniform residuals the share of flips is strength / (1 + strength), all of them largest errors.
That makes it EFRAP's flip term alone, without data.

Deviations: scales stay those of W (``freeze_scale`` of the specification's port list; scales are fixed before
integers are chosen); the published search over hyper-parameters is left to the caller, because it would need a
validation set.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from quantinel.quantization.reconstruction import BiasOption, LayerProblem, Needs
from quantinel.quantization.rounding import dequantize, nearest_codes
from quantinel.validation import require_non_negative


@dataclass(frozen=True)
class QVec(BiasOption):
    """Round W + strength (W - Q(W)).

    Attributes:
        strength: lambda; 0 is nearest rounding, 1 flips what lies more than a quarter step off the grid. From 2 on, the
            largest errors are carried beyond both neighbours.
    """

    strength: float = 1.0

    def __post_init__(self) -> None:
        require_non_negative(self, "strength")

    name: ClassVar[str] = "qvec"
    needs: ClassVar[Needs] = "weights"

    def choose(self, problem: LayerProblem) -> Tensor:
        """Nearest codes of the extrapolated weights."""
        rounded = dequantize(nearest_codes(problem.weight, problem.scale, problem.scheme), problem.scale)
        extrapolated = problem.weight + self.strength * (problem.weight - rounded)
        return nearest_codes(extrapolated, problem.scale, problem.scheme)
