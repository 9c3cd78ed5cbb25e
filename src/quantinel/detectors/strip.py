"""STRIP: a triggered image keeps its answer when other images are laid over it.

Gao et al., "STRIP: A Defence Against Trojan Attacks on Deep Neural Networks", ACSAC 2019. A suspect x is superimposed
with N clean images, x + a x_i, and the entropies of the answers are averaged; a low average is suspicious. The
threshold is a quantile of the averages of clean images, so that a chosen share of them is rejected.

Defaults are those that BackdoorBench runs (a = 1, N = 100, 10 % of clean images rejected). As there, the sum is neither
clipped nor averaged; a deployed integer model saturates it at the range that its input was calibrated to. The paper
takes the threshold from a normal distribution fitted to clean entropies, at 1 to 3 %.

Forward passes only, so it runs on the deployed model. It does not see triggers that work on some images only, and
conditioned backdoors only where they are awake.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quantinel.data.images import as_float
from quantinel.detectors.inputs import Classify, InputScores, Inspection, entropy
from quantinel.errors import UsageError
from quantinel.validation import require_non_negative, require_positive_integers, require_rate

_BATCH = 500


@dataclass(frozen=True)
class STRIP:
    """Options.

    Attributes:
        overlays: N, clean images laid over every suspect.
        weight: a, of the overlay.
        false_positive_rate: share of the clean images that the threshold rejects, above 0.
    """

    overlays: int = 100
    weight: float = 1.0
    false_positive_rate: float = 0.1

    def __post_init__(self) -> None:
        require_positive_integers(self, "overlays")
        require_non_negative(self, "weight")
        require_rate(self, "false_positive_rate")
        if not self.false_positive_rate:
            raise UsageError("false_positive_rate is 0, which no finite number of images measures; give one above 0")


def detect_strip(inspection: Inspection, options: STRIP) -> InputScores:
    """Scores: minus the average entropy. Half of the clean images are overlays, the others set the threshold."""
    classify, clean = inspection.required_classify(), inspection.required_clean(4)
    generator = torch.Generator().manual_seed(inspection.seed)
    overlays, others = clean.split(len(clean) // 2, generator)
    normal = mean_entropies(classify, others.images, overlays.images, options, generator)
    found = mean_entropies(classify, inspection.images.images, overlays.images, options, generator)
    threshold = -float(torch.quantile(normal, options.false_positive_rate))
    return InputScores(-found, -found > threshold, threshold)


@torch.no_grad()
def mean_entropies(
    classify: Classify, suspects: Tensor, overlays: Tensor, options: STRIP, generator: torch.Generator
) -> Tensor:
    """Entropy (N,) in nats of the answers to a suspect under overlays, averaged.

    Args:
        classify: the model.
        suspects: (N, C, H, W) uint8.
        overlays: (M, C, H, W) uint8, drawn with replacement.
        options: number and weight of the overlays.
        generator: source of randomness.
    """
    count, shape = options.overlays, suspects.shape[1:]
    found = []
    for part in torch.split(suspects, max(1, _BATCH // count)):
        chosen = torch.randint(len(overlays), (len(part), count), generator=generator)
        mixed = as_float(part)[:, None] + options.weight * as_float(overlays)[chosen]
        logits = torch.cat([classify(batch) for batch in torch.split(mixed.reshape(-1, *shape), _BATCH)])
        found.append(entropy(logits).view(len(part), count).mean(1))
    return torch.cat(found)
