"""Pruning divergence: is this very choice of weights special, when others of nearly the same size could be removed?

Control copies remove as many weights (or filters), chosen by a ranking that is blurred: the logarithm of every norm
plus Gaussian noise, of another strength in every copy. In a harmless network the damage grows smoothly with the energy
that is removed, so a straight line through the copies (log divergence against log removed energy) predicts the damage
of the pruner's own choice, which removes least energy. An attacked network leaves the line in either direction: below
it when it was trained to work under this very mask (pruning-conditioned attacks train the pruned network's accuracy;
a network that was not trained for pruning loses most of its own), above it when its behaviour breaks there.

Null hypothesis: the pruner's choice lies on its copies' line; two-sided Student's t for a new observation of a linear
model, the smallest over the pruning schemes times their number. A network that was honestly trained with such a mask
has zeros where the mask removes, and then nothing changes; one that was trained at a neighbouring rate can look
attacked. BatchNorm stays as it is, as in `quantinel.quantization.pruning`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy import special
from torch import Tensor

from quantinel.detectors.behaviour import agreement, divergence, sampled
from quantinel.detectors.controls import draw, smallest, surprise
from quantinel.detectors.pruned_weights import Pruning
from quantinel.detectors.subject import Detection, Subject
from quantinel.errors import NotAssessable
from quantinel.inversion.answers import answers
from quantinel.quantization.pruning import PruningScheme
from quantinel.validation import require_positive_integers

STANDARD = (PruningScheme("l1-filters", (0.3,)), PruningScheme("magnitude", (0.5,), "layer"))
"""What deployers ask for first; used where the subject names no pruning."""
_BLUR = (0.05, 0.5)
_LEAST_SPREAD = 0.02
_LEAST_ENERGY = 1e-30


@dataclass(frozen=True)
class PruningDivergence:
    """The detector's options.

    Attributes:
        images: of the user's, at most.
        copies: controls of every pruning scheme.
    """

    images: int = 64
    copies: int = 19

    def __post_init__(self) -> None:
        require_positive_integers(self, "images", "copies")


@dataclass(frozen=True)
class _Outcome:
    p_value: float
    t: float
    divergence: float
    agreement: float


def detect(subject: Subject, options: PruningDivergence) -> Detection:
    """Score: -log10 of the p-value.

    Raises:
        NotAssessable: fewer than two images, or no layer that any of the pruning schemes prunes.
    """
    images = sampled(subject, options.images)
    floating = answers(subject.graph, images)
    schemes = subject.pruning or STANDARD
    found: dict[str, _Outcome] = {}
    notes: list[str] = []
    for scheme in schemes:
        pruning = Pruning.of(subject.graph, scheme)
        if pruning is None:
            continue
        outcome, cut = _judge(subject, options, pruning, images, floating)
        found[scheme.name] = outcome
        notes += [f"{scheme.name}: {note}" for note in cut]
    if not found:
        names = ", ".join(scheme.name for scheme in schemes)
        raise NotAssessable(f"no layer of this network can be pruned by {names}; name another pruning")
    worst = min(found.values(), key=lambda outcome: outcome.p_value)
    p_value = smallest([outcome.p_value for outcome in found.values()])
    return Detection(
        surprise(p_value),
        {
            "t": worst.t,
            "divergence": worst.divergence,
            "agreement": worst.agreement,
            **{f"t_{name}": outcome.t for name, outcome in found.items()},
        },
        p_value=p_value,
        notes=tuple(notes),
    )


def _judge(
    subject: Subject, options: PruningDivergence, pruning: Pruning, images: Tensor, floating: Tensor
) -> tuple[_Outcome, list[str]]:
    """One pruning scheme against blurred choices."""
    generator = torch.Generator().manual_seed(subject.seed)

    def control() -> tuple[float, float]:
        low, high = _BLUR
        weights = pruning.weights(low + (high - low) * float(torch.rand(1, generator=generator)), generator)
        damage = divergence(floating, answers(subject.graph, images, weights))
        return math.log(max(pruning.energy(weights), _LEAST_ENERGY)), math.log(damage)

    weights = pruning.weights()
    energy, pruned = pruning.energy(weights), answers(subject.graph, images, weights)
    same, damage = agreement(floating, pruned), divergence(floating, pruned)
    if not energy:  # what would be removed is zero already
        return _Outcome(1.0, 0.0, damage, same), []
    copies, notes = draw(control, options.copies, subject.budget)
    t = _off_line(math.log(energy), math.log(damage), [copy[0] for copy in copies], [copy[1] for copy in copies])
    p_value = 2.0 * float(special.stdtr(len(copies) - 2, -abs(t)))
    return _Outcome(p_value, t, damage, same), notes


def _off_line(x: float, y: float, xs: list[float], ys: list[float]) -> float:
    """Student's t of a new observation (x, y) under the straight line through the controls."""
    a, b = torch.tensor(xs, dtype=torch.float64), torch.tensor(ys, dtype=torch.float64)
    centred = a - a.mean()
    spread = float(centred.square().sum())
    slope = float((centred * (b - b.mean())).sum()) / spread if spread > 1e-12 else 0.0
    residual = b - b.mean() - slope * centred
    deviation = max(math.sqrt(float(residual.square().sum()) / (len(xs) - 2)), _LEAST_SPREAD)
    leverage = 1.0 + 1.0 / len(xs) + ((x - float(a.mean())) ** 2 / spread if spread > 1e-12 else 0.0)
    return (y - float(b.mean()) - slope * (x - float(a.mean()))) / (deviation * math.sqrt(leverage))
