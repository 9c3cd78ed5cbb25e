"""The objective that both forms of EFRAP share.

Li et al., "Nearest is Not Dearest: Towards Practical Defense against Quantization-conditioned Backdoor
Attacks", CVPR 2024. Per layer, over h in [0, 1] with V = s (clip(floor(W/s) + h)):

    L = L_A + flip_weight * L_F (+ binary_weight * L_P while h is relaxed)
    L_A = mean over images and positions of the sum over channels of (g(x'; V) - g(x; W))^2
    L_F = sum_i e_i BCE(h_i, r_i),  r_i = 1 - [nearest rounds up],  e_i = truncation error of weight i
    L_P = sum_i 1 - |2 h_i - 1|^2

With binary h, BCE(h_i, r_i) is 0 or -log(1e-8) (the released code's guard); a unit cost e_i [h_i != r_i] keeps
the meaning of the weight and drops that constant.

How e_i is measured is the open question of the paper (it speaks of neuron-wise norms, the released code sums
raw weight units, so its flip rate depends on the weights' scale). ``flip_error`` names the choices:

* "absolute": e_i in weight units, summed: the released code.
* "step": e_i / s, times the mean output energy of one grid step, s_o^2 mean(diag H): free of the scale of
  weights and activations. Closed form only needs H for this; the relaxed form uses the same H.
* "neuron": "step" times the norm of the channel's truncation errors over the mean norm of all channels: the
  neuron-wise guidance that the paper describes.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from quantinel.quantization.reconstruction import LayerProblem
from quantinel.quantization.rounding import broadcast_scale

FlipError = Literal["absolute", "step", "neuron"]


def flip_costs(problem: LayerProblem, flip_error: FlipError) -> Tensor:
    """Cost of leaving a weight at its nearest code, (O, ...) float, >= 0; zero where there is no choice.

    Args:
        problem: the layer; "step" and "neuron" need its statistics.
        flip_error: how truncation errors are measured.
    """
    error = problem.cell.error
    if flip_error == "absolute":
        return error * problem.cell.free
    assert problem.statistics is not None
    scale = broadcast_scale(problem.scale, problem.weight)
    energy = problem.statistics.gram.diagonal(dim1=1, dim2=2).mean()
    cost = error / scale * scale.square() * energy
    if flip_error == "neuron":
        norms = (error / scale).flatten(1).norm(dim=1)
        cost = cost * broadcast_scale(norms / norms.mean().clamp_min(1e-12), problem.weight)
    return cost * problem.cell.free


def flipped_is_ceil(problem: LayerProblem) -> Tensor:
    """r: True where the code opposite to nearest is the ceiling, (O, ...) bool."""
    return torch.logical_not(problem.cell.nearest_is_ceil)
