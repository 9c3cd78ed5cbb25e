"""LAC with PDA: layer inputs are first pulled to what BatchNorm remembers of the poisoned training data.

Li et al., ICML 2024, section on poisoned distribution approximation; form and constants as released (specification of
the defenses, 2.3 [C]). For a layer with BatchNorm, with a = its output before BatchNorm, m and v mean and deviation
of a over the positions of each image, and mu and sd the running ones:

    J(x) = ||mu - m||^2 / N + ||sd - v||^2 / N,    sd = sqrt(running variance + 1e-6),  v likewise

Each batch of inputs takes ``pda_steps`` signed gradient steps down J, of size ``radius`` (half of it in the second
half of the steps), always clipped to +-``radius`` around the clean inputs. As the first step reaches that limit,
twenty steps do what the released 500 do. Then LAC runs on the moved inputs. Statistics are per image, not per batch,
as released; a comes from the nearest-rounded layer. Where BatchNorm is folded, a is recovered from the folded
output; channels with gamma = 0 are left out. Layers without BatchNorm (the classifier) are corrected on their clean
inputs, and so are linear layers: an image has no deviation over one position.

``target``: "clean", as released, keeps the float outputs of the clean inputs; "perturbed" uses those of the float
layer on its own inputs moved as far, what the paper's text more likely means [I]. (The released code has a second
routine for this that cannot run; there is nothing to compare with.)

Deviations: those of `lac`; the released code lets the radius apply to inputs of any scale and the first layer's
inputs are normalised pixels there, pixels in [0, 1] here; whether its deviations are biased is not known, here they
are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from quantinel.defenses.chain_training import Reconstruction
from quantinel.defenses.lac_objective import LACOptions, correct_activations
from quantinel.model.batch_norm import FoldedBatchNorm
from quantinel.quantization.reconstruction import Chain, LayerProblem, Needs
from quantinel.quantization.rounding import dequantize, nearest_codes
from quantinel.validation import require_choice, require_non_negative

_FLOOR = 1e-6


@dataclass(frozen=True)
class LACPDA(LACOptions):
    """LAC on inputs that approximate the poisoned distribution.

    Attributes:
        pda_steps: signed steps per batch; 0 is plain LAC.
        radius: largest change of an input value, and size of a step.
        target: outputs to reconstruct.
    """

    pda_steps: int = 500
    radius: float = 1e-3
    target: Literal["clean", "perturbed"] = "clean"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_non_negative(self, "pda_steps", "radius")
        require_choice(self, "target", ("clean", "perturbed"))

    name: ClassVar[str] = "lac-pda"
    needs: ClassVar[Needs] = "batch-norm"

    def choose(self, problem: LayerProblem) -> Tensor:
        """Move the inputs of one layer, then correct it; (O, ...) int8."""
        assert problem.chain is not None
        with torch.inference_mode(False), torch.enable_grad():
            reconstruction = Reconstruction.of(problem.chain)
            if problem.batch_norm is not None and problem.layer.kind == "conv":
                reconstruction = self._moved(problem, reconstruction, problem.batch_norm)
            return correct_activations(problem, self, reconstruction)

    def _moved(
        self, problem: LayerProblem, reconstruction: Reconstruction, batch_norm: FoldedBatchNorm
    ) -> Reconstruction:
        chain = reconstruction.chain
        nearest = dequantize(nearest_codes(problem.weight, problem.scale, problem.scheme), problem.scale)
        weight = problem.weight.clone()
        inputs, targets = [], []
        for start in range(0, len(reconstruction.inputs), self.batch_size):
            part = slice(start, start + self.batch_size)
            batch = reconstruction.inputs[part]
            moved = self.approximate(chain, nearest, batch_norm, batch)
            inputs.append(moved)
            if self.target == "clean":
                targets.append(reconstruction.targets[part])
            else:
                with torch.no_grad():
                    targets.append(chain.follow(chain.layer(chain.floating[part] + (moved - batch), weight)))
        return Reconstruction(chain, torch.cat(inputs), torch.cat(targets))

    def approximate(self, chain: Chain, weight: Tensor, batch_norm: FoldedBatchNorm, clean: Tensor) -> Tensor:
        """One batch of inputs, moved."""
        moved = clean.clone()
        for step in range(self.pda_steps):
            moved.requires_grad_(True)
            value = mismatch(chain.layer(moved, weight), batch_norm)
            (gradient,) = torch.autograd.grad(value, moved)
            size = self.radius if step < self.pda_steps / 2 else self.radius / 2
            change = (moved.detach() - size * gradient.sign() - clean).clamp(-self.radius, self.radius)
            moved = clean + change
        return moved.detach()


def mismatch(outputs: Tensor, batch_norm: FoldedBatchNorm) -> Tensor:
    """J of the outputs (N, O, ...) of a convolution."""
    alive = batch_norm.factor != 0
    before = batch_norm.undo(outputs)[:, alive]
    variance, mean = torch.var_mean(before.flatten(2), dim=2, correction=0)
    deviation = (batch_norm.variance[alive] + _FLOOR).sqrt()
    squares = (batch_norm.mean[alive] - mean).square().sum() + (deviation - (variance + _FLOOR).sqrt()).square().sum()
    return squares / len(outputs)
