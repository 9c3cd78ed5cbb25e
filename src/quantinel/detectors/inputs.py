"""Detectors of poisoned images: what they are given, and what they return.

`quantinel.detectors.subject` is for detectors that judge a model; these judge images, of a training set or at
inference, some of them with the help of a model. A backdoor that sleeps in float does not show in what the float model
makes of an image, so a detector that asks the model has to be given the compressed one, or it is blind by construction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quantinel.data.images import ImageSet
from quantinel.errors import NotAssessable
from quantinel.metrics import Proportion

Classify = Callable[[Tensor], Tensor]
"""Float images (N, C, H, W) in [0, 1] -> logits (N, K), by a network or by a deployed file."""


@dataclass(frozen=True)
class Inspection:
    """Images under suspicion, with what a detector may use.

    Attributes:
        images: the suspects; with labels where they are training data.
        clean: images that are known to be clean, none of them among the suspects.
        classify: the model as it is deployed.
        module: the model as a network in evaluation mode, for detectors that look inside.
        seed: of everything random.
    """

    images: ImageSet
    clean: ImageSet | None = None
    classify: Classify | None = None
    module: nn.Module | None = None
    seed: int = 0

    def required_clean(self, at_least: int) -> ImageSet:
        """The clean images.

        Raises:
            NotAssessable: there are fewer.
        """
        if self.clean is None or len(self.clean) < at_least:
            given = 0 if self.clean is None else len(self.clean)
            raise NotAssessable(f"needs at least {at_least} images that are known to be clean, got {given}")
        return self.clean

    def required_labels(self) -> Tensor:
        """Labels (N,) of the suspects.

        Raises:
            NotAssessable: they have none.
        """
        if self.images.labels is None:
            raise NotAssessable("judges training data by their labels, and these images have none")
        return self.images.labels

    def required_classify(self) -> Classify:
        """The deployed model.

        Raises:
            NotAssessable: there is none.
        """
        if self.classify is None:
            raise NotAssessable("asks a model for its answers, and none was given")
        return self.classify

    def required_module(self) -> nn.Module:
        """The network.

        Raises:
            NotAssessable: there is none.
        """
        if self.module is None:
            raise NotAssessable("looks at the features of a network, and none was given")
        return self.module


@dataclass(frozen=True)
class InputScores:
    """What a detector makes of every suspect.

    Attributes:
        scores: (N,) float; higher is more suspicious.
        flagged: (N,) bool, by the method's own rule.
        threshold: scores above it are flagged; None where the rule is another.
    """

    scores: Tensor
    flagged: Tensor
    threshold: float | None = None

    def rates(self, poisoned: Tensor) -> tuple[Proportion, Proportion]:
        """Share of the poisoned images (N,) bool that is flagged, and of the others."""
        return tuple(Proportion(int(self.flagged[of].sum()), int(of.sum())) for of in (poisoned, ~poisoned))  # type: ignore[return-value]


@torch.no_grad()
def entropy(logits: Tensor) -> Tensor:
    """Shannon entropy (N,) in nats of the softmax of (N, K)."""
    logs = logits.float().log_softmax(1)
    return -(logs.exp() * logs).sum(1)
