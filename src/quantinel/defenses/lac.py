"""LAC: layer-wise activation correction, as its authors released it.

Li et al., ICML 2024; objective and commit rule in `lac_objective`, schedule in `chain_training` (10,000 Adam steps at
1e-3 a layer, batches of 32). Deviations, as for EFRAP: BatchNorm is folded, scales follow the scheme's rule, no layer
is promoted to 8 bits. The released code calibrates activation ranges on test images; here every statistic comes from
the calibration images alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from quantinel.defenses.chain_training import Reconstruction
from quantinel.defenses.lac_objective import LACOptions, correct_activations
from quantinel.quantization.reconstruction import LayerProblem, Needs


@dataclass(frozen=True)
class LAC(LACOptions):
    """Reconstruction by a weight offset."""

    name: ClassVar[str] = "lac"
    needs: ClassVar[Needs] = "activations"

    def choose(self, problem: LayerProblem) -> Tensor:
        """Correct one layer; (O, ...) int8."""
        assert problem.chain is not None
        with torch.inference_mode(False), torch.enable_grad():
            return correct_activations(problem, self, Reconstruction.of(problem.chain))
