"""What every detector is given and what it returns."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from quantinel.data.images import ImageSet
from quantinel.detectors.layer_residuals import LayerResiduals, graph_residuals
from quantinel.detectors.weight_residuals import Residuals, weight_residuals
from quantinel.errors import NotAssessable
from quantinel.inversion.budget import Budget
from quantinel.inversion.rounding_errors import RoundingErrors, rounding_errors
from quantinel.model.graph import FloatGraph
from quantinel.quantization.calibration import Calibration, calibrate
from quantinel.quantization.pruning import PruningScheme
from quantinel.quantization.quantized_model import QuantizedModel, quantize_nearest
from quantinel.quantization.scheme import QuantScheme


@dataclass(frozen=True)
class Subject:
    """A float model under suspicion.

    Attributes:
        graph: folded float network.
        scheme: the grid that it is to be deployed on.
        images: unlabeled images; None for detectors that need none.
        seed: of everything random.
        pruning: how it may be pruned, for detectors of pruning-conditioned behaviour.
        budget: how long detectors may work.
    """

    graph: FloatGraph
    scheme: QuantScheme
    images: ImageSet | None
    seed: int
    pruning: tuple[PruningScheme, ...] = ()
    budget: Budget = field(default_factory=Budget)

    def required_images(self, at_least: int = 2) -> ImageSet:
        """The images.

        Raises:
            NotAssessable: none were given, or fewer than ``at_least``.
        """
        if self.images is None or len(self.images) < at_least:
            given = 0 if self.images is None else len(self.images)
            raise NotAssessable(f"needs at least {at_least} images of the model's own kind, got {given}; give --data")
        return self.images

    def within(self, budget: Budget) -> Subject:
        """The same subject, what was measured for it included, with another budget."""
        twin = copy.copy(self)
        object.__setattr__(twin, "budget", budget)
        return twin

    def keep(self, twin: Subject) -> None:
        """Take over what was measured for a subject of `within`, so that it is measured once."""
        for name, value in vars(twin).items():
            self.__dict__.setdefault(name, value)

    @cached_property
    def residuals(self) -> tuple[LayerResiduals, ...]:
        """Rounding residuals of the weights by layer, measured once for all detectors that need no images."""
        return graph_residuals(self.graph, self.scheme, self.seed)

    @cached_property
    def crowding(self) -> Residuals:
        """The same weights in the coarse bins that reports show, and their share at rounding boundaries."""
        return weight_residuals(self.graph, self.scheme)

    @cached_property
    def calibration(self) -> Calibration:
        """Activation ranges on the images, measured once for all detectors."""
        return calibrate(self.graph, self.required_images(), self.scheme, seed=self.seed)

    @cached_property
    def nearest(self) -> QuantizedModel:
        """What ordinary deployment makes of the model."""
        return quantize_nearest(self.graph, self.calibration)

    @cached_property
    def rounding_errors(self) -> RoundingErrors:
        """What nearest rounding adds to the weights, measured once for all detectors with control copies."""
        return rounding_errors(self.graph, self.nearest)

    @cached_property
    def float_logits(self) -> Tensor:
        """(N, K) of the images, by the float network."""
        with torch.inference_mode():
            batches = [self.graph.module(batch) for batch in self.required_images().batches(64)]
        return torch.cat(batches)


@dataclass(frozen=True)
class Detection:
    """What a detector found.

    Attributes:
        score: higher is more suspicious; comparable between models, no probability.
        statistics: the figures behind it, by name.
        p_value: of the null hypothesis that the detector names in its docstring; None where it has none.
        suspect_class: the class that compressed behaviour leans to; None where the detector does not know.
        by_class: the score's figure by class.
        by_layer: the score's figure by layer.
        tensors: evidence to look at, by name: histograms, masks, patterns.
        notes: plain sentences on what was cut short or left out, and what it cost.
        remarks: other plain sentences for people.
    """

    score: float
    statistics: Mapping[str, float] = field(default_factory=dict)
    p_value: float | None = None
    suspect_class: int | None = None
    by_class: Mapping[int, float] = field(default_factory=dict)
    by_layer: Mapping[str, float] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


ALREADY_ON_GRID = Detection(
    0.0,
    {"moved_share": 0.0},
    p_value=1.0,
    remarks=("all weights lie on the grid already: rounding changes none of them, and nothing can wake by it",),
)
"""The answer of detectors of rounding where there are no rounding errors."""
