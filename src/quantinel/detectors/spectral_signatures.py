"""Spectral Signatures: poisoned training images stand out along the first singular vector of their class.

Tran, Li & Madry, "Spectral Signatures in Backdoor Attacks", NeurIPS 2018. For every class, penultimate features h of a
network that was trained on the suspect data are centred, v is the first right singular vector, and the score of an
image is <h - mean, v>^2. The images of highest score are flagged, 15 % of every class as in BackdoorBench (the
paper removes 1.5 times the expected number of poisoned ones, which the defender does not know).

Deviation from two released codes: BackdoorBench and BackdoorBox take the singular vector of centred features but score
uncentred ones; ``centred=False`` is theirs. Every class always loses its share, clean ones too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from quantinel.detectors.inputs import InputScores, Inspection
from quantinel.model.penultimate import last_linear, penultimate_features
from quantinel.validation import require_rate


@dataclass(frozen=True)
class SpectralSignatures:
    """Options.

    Attributes:
        share: of the images of every class that is flagged.
        centred: score centred features.
    """

    share: float = 0.15
    centred: bool = True

    def __post_init__(self) -> None:
        require_rate(self, "share")


def detect_spectral(inspection: Inspection, options: SpectralSignatures) -> InputScores:
    """Scores of labelled training images by the features of the network that was trained on them."""
    module, labels = inspection.required_module(), inspection.required_labels()
    _, head = last_linear(module)
    features = penultimate_features(module, head, inspection.images.images)
    scores = spectral_scores(features, labels, centred=options.centred)
    flagged = torch.zeros(len(labels), dtype=torch.bool)
    for label in torch.unique(labels):
        members = (labels == label).nonzero()[:, 0]
        count = math.floor(options.share * len(members))
        flagged[members[scores[members].argsort(descending=True, stable=True)[:count]]] = True
    return InputScores(scores, flagged)


def spectral_scores(features: Tensor, labels: Tensor, *, centred: bool = True) -> Tensor:
    """Squared projections (N,) on the first singular vector of each class.

    Args:
        features: (N, D).
        labels: (N,).
        centred: project what the singular vector was taken of.
    """
    scores = torch.zeros(len(labels))
    for label in torch.unique(labels):
        members = labels == label
        raw = features[members].double()
        middle = raw - raw.mean(0)
        direction = torch.linalg.svd(middle, full_matrices=False).Vh[0]
        scores[members] = ((middle if centred else raw) @ direction).square().float()
    return scores
