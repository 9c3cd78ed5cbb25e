"""Reflected reconstruction: keep the float network's answers, and lean away from the rounding error.

A quantization-conditioned backdoor wakes along one direction, the error of nearest rounding R = Q(W) - W. Three
published ideas answer it, and each lacks what another has: EFRAP (Li et al., CVPR 2024) flips large errors and keeps
activations, with a weight between the two that means something else on every grid; LAC (Li et al., ICML 2024)
reconstructs, and so returns to the float network's behaviour, what is left of the backdoor included; QVec (Yang et
al., 2026) extrapolates W - lambda R, and rounds the result without a look at activations. Here a layer reproduces, on
the quantized prefix and in the output metric H of calibration images, the outputs of the *reflected* weights

    W* = W - lambda R,   lambda = min(reach, sqrt(budget / e)),   e = tr(R H R^T) / E||W x||^2,

by coordinate descent over floor and ceiling of W, and over a few more codes where ``room`` is given. The lean is
bounded in units of the output: it moves a layer's outputs by at most the share ``budget`` of their energy, on any grid
and any number of bits; where nearest rounding hardly disturbs a layer, lambda is ``reach``. Bias correction then gives
every channel the mean that it has in the float network: what leaning changes on all images alike is undone, what it
changes along R stays. docs/defenses.md has the ablations.

Without a coherent error there is nothing to lean away from: on a benign network W* differs from W by noise of the size
of rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from quantinel.defenses.closed_form import grouped, reconstruct
from quantinel.quantization.reconstruction import LayerProblem, LeaningMethod, Needs
from quantinel.validation import require_non_negative, require_positive_integers, require_rate


@dataclass(frozen=True)
class Reflect(LeaningMethod):
    """Closed-form reconstruction of reflected weights.

    Attributes:
        budget: largest share of a layer's output energy that leaning may move; 0 is reconstruction alone.
        reach: largest lambda; 1 mirrors the weights at their nearest rounding.
        damping: ridge, as a share of the mean of diag H.
        sweeps: at most this many passes of coordinate descent.
        room: how far a weight may move beyond its two neighbours on the grid; see `reconstruct`.
        bias_correction: see `BiasOption`.
        blocks: see `BlockOption`.
    """

    budget: float = 0.005
    reach: float = 1.0
    damping: float = 0.01
    sweeps: int = 5
    room: float = 0.0
    bias_correction: bool = True

    def __post_init__(self) -> None:
        require_non_negative(self, "budget", "reach", "damping")
        require_rate(self, "room")
        require_positive_integers(self, "sweeps")

    name: ClassVar[str] = "reflect"
    needs: ClassVar[Needs] = "statistics"

    def choose(self, problem: LayerProblem) -> Tensor:
        """Minimise the output error against the reflected weights; (O, ...) int8."""
        return reconstruct(
            problem, lean=-self.reflection(problem), damping=self.damping, sweeps=self.sweeps, room=self.room
        )

    def reflection(self, problem: LayerProblem) -> float:
        """lambda of this layer."""
        assert problem.statistics is not None
        moved = problem.statistics.moments.energy(grouped(problem, problem.rounding_error()))
        allowed = self.budget * problem.statistics.output_energy
        return self.reach if moved * self.reach**2 <= allowed else float((allowed / moved) ** 0.5)
