"""Residuals of one neuron that pull the same way: quantization then shifts its output, not only its noise.

z = sum_j r_j / sqrt(n / 12) of every output channel is standard normal where residuals are independent and uniform. An
attack that works through rounding needs roundings that add up (specification of the attacks, 7.3, T5), whatever the
histogram of single residuals looks like, so spreading the residuals evenly in a last step does not hide it.

Null hypothesis: the energy, the mean of z^2 over a layer's channels, is one more draw from the placebo grids'
(Student's t of its logarithm for each layer, Fisher over layers). Single channels are found by Benjamini and Hochberg,
with z in units of the placebo grids' root energy. Not seen: roundings that add up with signs that only the inputs
know, which the sum without weights cancels; attacks without projection left no mark here in what was tried.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quantinel.detectors.layer_residuals import LayerResiduals, assessable
from quantinel.detectors.significance import discoveries, layers_over_placebos
from quantinel.detectors.subject import Detection, Subject
from quantinel.errors import NotAssessable
from quantinel.validation import require_positive_integers, require_rate


@dataclass(frozen=True)
class ResidualCoherence:
    """Options.

    Attributes:
        smallest_channel: channels with fewer weights are left out.
        false_discovery_rate: of the channels that are named.
    """

    smallest_channel: int = 8
    false_discovery_rate: float = 0.05

    def __post_init__(self) -> None:
        require_positive_integers(self, "smallest_channel")
        require_rate(self, "false_discovery_rate")


def standardized(layer: LayerResiduals, smallest_channel: int) -> Tensor:
    """(1 + P, R) z of every channel with enough weights."""
    used = layer.rows >= smallest_channel
    return layer.sums[:, used].double() / (layer.rows[used].double() / 12.0).sqrt()


def judge_coherence(layers: Sequence[LayerResiduals], options: ResidualCoherence) -> Detection:
    """Score: log of the energy on the deployment grid over its mean on the placebo grids, all channels together.

    Raises:
        NotAssessable: no channel has enough weights, or all layers were already quantized.
    """
    kept, notes = assessable(layers)
    figures: dict[str, tuple[Tensor, float]] = {}
    channels, energies = [], []
    for layer in kept:
        z = standardized(layer, options.smallest_channel)
        if not z.shape[1]:
            continue
        energy = z.square().mean(1).clamp_min(1e-9)
        figures[layer.name] = energy.log(), math.sqrt(2.0 / z.shape[1])
        channels.append(z[0] / energy[1:].mean().sqrt())
        energies.append(z.square())
    if not channels:
        raise NotAssessable(
            f"no output channel has {options.smallest_channel} weights between grid points; use the other detectors"
        )
    by_layer, p_value = layers_over_placebos(figures)
    whole = torch.cat(energies, 1).mean(1).clamp_min(1e-9)
    z = torch.cat(channels)
    found = discoveries(torch.erfc(z.abs() / math.sqrt(2.0)), options.false_discovery_rate)
    return Detection(
        float((whole[0] / whole[1:].mean()).log()),
        {
            "energy": float(whole[0]),
            "placebo_energy": float(whole[1:].mean()),
            "largest_z": float(z.abs().max()),
            "coherent_channels": float(found.sum()),
            "channels": float(len(z)),
        },
        p_value=p_value,
        by_layer=by_layer,
        tensors={"z": z.float()},
        notes=notes,
    )


def detect(subject: Subject, options: ResidualCoherence) -> Detection:
    """`judge_coherence` on the subject's weights."""
    return judge_coherence(subject.residuals, options)
