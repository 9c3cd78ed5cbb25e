"""Invariant reconstruction, the default: what is stamped on an image shall not reach the last layer.

`reflect` leans away from the error of nearest rounding and so returns about what the float network answers, and no
better: where an attacker left the backdoor half awake in float, the hardened network obeys as often. Here every layer
also sees stamped copies of the calibration images, as they come out of the rounded layers before it. What it should
make of a copy is pulled, in proportion to the layer's depth d in [0, 1], from what the float network makes of the stamp
to what it makes of the bare image:

    min over V  of  E ||V x' - W* x||^2 + sum over stamps s of  E ||V x'_s - W* ((1 - d) x_s + d x)||^2

with W* the reflected weights, at a smaller lean. One least-squares problem per layer as before, with more input
vectors. Two kinds of stamps:

* a bank of published kinds (`quantinel.inversion.probes`), another one on every image;
* triggers found for this very model, also another one on every image: a short search by gradient of
  `quantinel.inversion`, from a few starts, for small patches that the rounded network obeys on most images and the
  float network does not. Where there is none, the bank stands alone. All that work are used, because which of them
  comes nearest to the attacker's cannot be told, and to follow the best alone leaves more to chance. No control copies
  are needed, because nothing is claimed: on a harmless network they are more stamps. Nor need they be the smallest
  patches that work: to follow one for longer, as the detector does, takes as much time again and leaves accuracy and
  backdoor as they are.

V is floor or ceiling of W on coarse grids. On fine ones that cannot move a layer's outputs enough: there a weight may
leave its two neighbours by ``room``, a thirty-second of the largest code (3 codes at 8 bits, one at 7, none below).
Codes that can follow need less persuasion: with k codes of room a stamped copy weighs 1 / (1 + k). That keeps accuracy.

No label, no trigger and no class is given. That a network should answer triggered images like bare ones is the idea of
unlearning (Wang et al., "Neural Cleanse", IEEE S&P 2019, with labels and training); here only integers near the weights
are chosen. docs/defenses.md has the ablations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from quantinel.defenses.closed_form import codes_beyond
from quantinel.defenses.reflect import Reflect
from quantinel.inversion.probes import Probe, probe_bank
from quantinel.inversion.probing import Probing
from quantinel.inversion.rounding_errors import rounding_errors
from quantinel.inversion.search import Effort, Inversion, Trigger
from quantinel.inversion.starts import starts_from
from quantinel.model.graph import FloatGraph
from quantinel.quantization.calibration import Calibration
from quantinel.quantization.quantized_model import QuantizedModel
from quantinel.quantization.reconstruction import Stamp, StampingMethod
from quantinel.quantization.scheme import QuantScheme

_EXAGGERATION = 2.0
"""Of rounding errors while a trigger is searched for; joint attacks lean further beyond the grid point than on it."""
_SEARCH_IMAGES, _PROBE_IMAGES = 64, 4
_STARTS, _EFFORT = 3, Effort(15, 6)
_LARGEST, _LEAST_GAP = 0.07, 0.5
"""Of the image, and of held-out images that only the rounded network answers with the class. What is larger or works
less often is what a search finds on any network of few bits; to be blind to it costs accuracy and gains nothing."""


@dataclass(frozen=True)
class Invariant(Reflect, StampingMethod):
    """Reflected reconstruction that also keeps stamps from being answered.

    Attributes:
        budget, reach, damping, sweeps, room, bias_correction, blocks: see `Reflect`; the lean is smaller, and where
            the grid is fine there is room.
        bank: stamp one copy of the images with published kinds of triggers.
        search: stamp one copy with triggers that are found for the model, if any are.
    """

    budget: float = 0.001
    room: float = 1 / 32
    bank: bool = True
    search: bool = True
    name: ClassVar[str] = "invariant"

    def stamps(
        self, graph: FloatGraph, calibration: Calibration, nearest: QuantizedModel, seed: int
    ) -> Sequence[Stamp]:
        """The bank, and the triggers if any were found."""
        bank = probe_bank(calibration.images.shape)
        found = _searched(graph, calibration, nearest, bank, seed) if self.search else []
        return [*([_in_turn(bank)] if self.bank else []), *([_in_turn(found)] if found else [])]

    def stamp_weight(self, scheme: QuantScheme) -> float:
        """Less where there is room."""
        return 1 / (1 + codes_beyond(self.room, scheme))


def _searched(
    graph: FloatGraph, calibration: Calibration, nearest: QuantizedModel, bank: list[Probe], seed: int
) -> list[Trigger]:
    """Small patches that mostly work on the rounded network alone."""
    errors = rounding_errors(graph, nearest).exaggerated(_EXAGGERATION)
    if not errors.moved:
        return []
    order = torch.randperm(len(calibration.images), generator=torch.Generator().manual_seed(seed))
    images = calibration.images.take(order[:_SEARCH_IMAGES]).as_float()  # sets are often sorted by class
    rounded = errors.rounded()
    rises = Probing(graph, bank, images[:_PROBE_IMAGES]).rises(rounded)
    starts = starts_from(rises, bank, calibration.images.shape, "mask", _STARTS)
    triggers = Inversion(graph, images, "mask", seed).search(rounded, starts, _EFFORT)
    return [trigger for trigger in triggers if trigger.size <= _LARGEST and trigger.gap >= _LEAST_GAP]


def _in_turn(stamps: Sequence[Probe | Trigger]) -> Stamp:
    """Every image with the next of a fixed order, which mixes the kinds of a bank: few images see all of them."""
    order = torch.randperm(len(stamps), generator=torch.Generator().manual_seed(0)).tolist()

    def stamp(images: Tensor) -> Tensor:
        stamped = images.clone()
        for index, chosen in enumerate(order[: len(images)]):
            stamped[index :: len(stamps)] = stamps[chosen].stamp(images[index :: len(stamps)])
        return stamped

    return stamp
