"""Pruning-conditioned trigger inversion: a trigger for the pruned network that the float network does not obey.

The search is that of `quantinel.detectors.trigger_inversion`. Control copies remove as many weights by a ranking that
is blurred a little, as in `quantinel.detectors.pruning_divergence`. Null hypothesis: the pruner's own choice is one of
them.
"""

from __future__ import annotations

from dataclasses import dataclass

from quantinel.detectors.behaviour import sampled
from quantinel.detectors.pruned_weights import Pruning
from quantinel.detectors.pruning_divergence import STANDARD
from quantinel.detectors.subject import Detection, Subject
from quantinel.detectors.trigger_inversion import TriggerInversion, inverted
from quantinel.errors import NotAssessable

_BLUR = 0.25
_NOTHING = "all weights that this pruning removes are zero already, and nothing can wake by it"


@dataclass(frozen=True)
class PruningInversion(TriggerInversion):
    """The detector's options; see `TriggerInversion`."""


def detect(subject: Subject, options: PruningInversion) -> Detection:
    """Score: logarithm of the controls' loss over the pruned network's, for the first pruning of the subject.

    Raises:
        NotAssessable: fewer than two images, or no layer that the pruning prunes.
    """
    images = sampled(subject, options.images)
    scheme = (subject.pruning or STANDARD)[0]
    pruning = Pruning.of(subject.graph, scheme)
    if pruning is None:
        raise NotAssessable(f"no layer of this network can be pruned by {scheme.name}; name another pruning")
    pruned = pruning.weights()
    if not pruning.energy(pruned):
        return Detection(0.0, {"removed_energy": 0.0}, p_value=1.0, remarks=(_NOTHING,))
    return inverted(subject, images, pruned, lambda generator: pruning.weights(_BLUR, generator), options)
