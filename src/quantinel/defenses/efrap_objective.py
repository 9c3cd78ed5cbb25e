"""The objective that both forms of EFRAP share.

Li et al., "Nearest is Not Dearest: Towards Practical Defense against Quantization-conditioned Backdoor
Attacks", CVPR 2024. Per layer, over h in [0, 1] with V = s (clip(floor(W/s) + h)):

    L = activation_weight * L_A + flip_weight * L_F (+ binary_weight * L_P while h is relaxed)
    L_A = mean over images and positions of the sum over channels of (g(x'; V) - g(x; W))^2
    L_F = sum_i e_i BCE(h_i, r_i),  r_i = 1 - [nearest rounds up],  e_i = truncation error of weight i
    L_P = sum_i 1 - |2 h_i - 1|^2

With binary h, BCE(h_i, r_i) is 0 or -log(1e-8) (the released code's guard); a unit cost e_i [h_i != r_i] keeps
the meaning of the weight and drops that constant.

How e_i is measured is the open question of the paper (its abstract speaks of neuron-wise norms, the released code sums
raw weight units element by element, so its flip rate depends on the weights' scale). Two choices, independent of each
other:

* unit: weight units as released, or grid steps (e_i / s); in the closed form steps are multiplied by the mean output
  energy of one step, s_o^2 mean(diag H), so that the flip weight is free of the scale of weights and activations. The
  mean is the layer's: in a grouped or depthwise layer the channels whose inputs are quieter flip more than the others;
* `Guidance`, [I] where it is not "weight": "weight" takes each weight's own error; "neuron" multiplies it by the norm
  of the channel's errors over the mean norm of all channels; "row" gives all weights of a channel the same error, the
  mean error of the layer times that ratio (the neuron-wise variant of the specification's port list, 1.8, there
  without the mean).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from quantinel.quantization.reconstruction import LayerProblem
from quantinel.quantization.rounding import broadcast_scale

Guidance = Literal["weight", "neuron", "row"]
FlipError = Literal["absolute", "step", "neuron", "row"]
"""Of the closed form: "absolute" is in weight units (a layer's own where its weights or inputs are of no ordinary size,
`quantization.units`), the others are in steps with their guidance."""


def guided(error: Tensor, guidance: Guidance) -> Tensor:
    """Truncation errors (O, ...) as the flip term weighs them."""
    if guidance == "weight":
        return error
    norms = error.flatten(1).norm(dim=1)
    ratio = broadcast_scale(norms / norms.mean().clamp_min(1e-12), error)
    return (error if guidance == "neuron" else error.mean()) * ratio


def flip_costs(problem: LayerProblem, flip_error: FlipError) -> Tensor:
    """Cost of leaving a weight at its nearest code, (O, ...) float, >= 0; zero where there is no choice.

    Args:
        problem: the layer; all but "absolute" need its statistics.
        flip_error: how truncation errors are measured.
    """
    if flip_error == "absolute":
        return problem.cell.error * problem.cell.free
    assert problem.statistics is not None
    scale = broadcast_scale(problem.scale, problem.weight)
    energy = problem.statistics.moments.diagonal().mean()
    steps = guided(problem.steps_off(), "weight" if flip_error == "step" else flip_error)
    return steps * scale.square() * energy * problem.cell.free


def flipped_is_ceil(problem: LayerProblem) -> Tensor:
    """r: True where the code opposite to nearest is the ceiling, (O, ...) bool."""
    return torch.logical_not(problem.cell.nearest_is_ceil)
