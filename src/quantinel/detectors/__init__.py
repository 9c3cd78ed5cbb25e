"""Detectors, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from quantinel.detectors import (
    activation_drift,
    block_outliers,
    crowding,
    edge_atoms,
    layer_coherence,
    neural_cleanse,
    on_grid,
    pruning_divergence,
    pruning_influence,
    pruning_inversion,
    re_rounding,
    residual_coherence,
    residual_fit,
    second_moment,
    trigger_inversion,
    trigger_probing,
)
from quantinel.detectors.crowding import WeightResiduals
from quantinel.detectors.frequency import FrequencyDetector, detect_frequency
from quantinel.detectors.inputs import InputScores, Inspection
from quantinel.detectors.spectral_signatures import SpectralSignatures, detect_spectral
from quantinel.detectors.strip import STRIP, detect_strip
from quantinel.detectors.subject import Detection, Subject
from quantinel.detectors.weight_residuals import Residuals, weight_residuals
from quantinel.plugins import add

__all__ = [
    "DETECTORS",
    "INPUT_DETECTORS",
    "STRIP",
    "Detection",
    "Detector",
    "FrequencyDetector",
    "InputDetector",
    "InputScores",
    "Inspection",
    "Residuals",
    "SpectralSignatures",
    "Subject",
    "WeightResiduals",
    "register",
    "register_input_detector",
    "weight_residuals",
]


@dataclass(frozen=True)
class Detector:
    """A registered detector.

    Attributes:
        name: as on the command line.
        summary: one line.
        needs: "weights" where no images are used.
        config: frozen dataclass of options.
        run: scores a subject; takes the options as its second argument.
    """

    name: str
    summary: str
    needs: Literal["weights", "images"]
    config: type[Any]
    run: Callable[[Subject, Any], Detection]


DETECTORS: dict[str, Detector] = {
    detector.name: detector
    for detector in (
        Detector(
            "weight-residuals",
            "share of weights at rounding boundaries against placebo grids; needs no images",
            "weights",
            WeightResiduals,
            crowding.detect,
        ),
        Detector(
            "edge-atoms",
            "many weights at one distance from the edge of their rounding cell, whatever the distance",
            "weights",
            edge_atoms.EdgeAtoms,
            edge_atoms.detect,
        ),
        Detector(
            "residual-fit",
            "distribution of the rounding residuals against placebo grids (Kuiper)",
            "weights",
            residual_fit.ResidualFit,
            residual_fit.detect,
        ),
        Detector(
            "second-moment",
            "weights herded to the centres or the edges of their rounding cells",
            "weights",
            second_moment.SecondMoment,
            second_moment.detect,
        ),
        Detector(
            "residual-coherence",
            "rounding residuals of one neuron that pull the same way",
            "weights",
            residual_coherence.ResidualCoherence,
            residual_coherence.detect,
        ),
        Detector(
            "block-outliers",
            "one huge weight in blocks of others, which makes quantizers drop the others",
            "weights",
            block_outliers.BlockOutliers,
            block_outliers.detect,
        ),
        Detector(
            "pruning-influence",
            "filters that a pruner removes first although the network listens to them",
            "weights",
            pruning_influence.PruningInfluence,
            pruning_influence.detect,
        ),
        Detector(
            "on-grid",
            "weights that are exactly points of the grid: information on models that were quantized before",
            "weights",
            on_grid.OnGrid,
            on_grid.detect,
        ),
        Detector(
            "re-rounding",
            "behaviour under nearest rounding against copies whose rounding errors have random signs",
            "images",
            re_rounding.ReRounding,
            re_rounding.detect,
        ),
        Detector(
            "layer-coherence",
            "rounding errors of single neurons that add up on their real inputs",
            "images",
            layer_coherence.LayerCoherence,
            layer_coherence.detect,
        ),
        Detector(
            "activation-drift",
            "channels whose mean moves in the deployed network more than in copies with random signs",
            "images",
            activation_drift.ActivationDrift,
            activation_drift.detect,
        ),
        Detector(
            "trigger-probing",
            "triggers of known kinds on the rounded network, against copies with random signs",
            "images",
            trigger_probing.TriggerProbing,
            trigger_probing.detect,
        ),
        Detector(
            "trigger-inversion",
            "a trigger for the rounded network alone, against the same search on copies with random signs",
            "images",
            trigger_inversion.TriggerInversion,
            trigger_inversion.detect,
        ),
        Detector(
            "neural-cleanse",
            "comparison: triggers of the float network, which sleeps (Neural Cleanse, Wang et al. 2019)",
            "images",
            neural_cleanse.NeuralCleanse,
            neural_cleanse.detect,
        ),
        Detector(
            "pruning-divergence",
            "behaviour under the pruner's choice of weights against blurred choices",
            "images",
            pruning_divergence.PruningDivergence,
            pruning_divergence.detect,
        ),
        Detector(
            "pruning-inversion",
            "a trigger for the pruned network alone, against the same search on blurred choices",
            "images",
            pruning_inversion.PruningInversion,
            pruning_inversion.detect,
        ),
    )
}


def register(detector: Detector) -> Detector:
    """Add a detector, for plugins.

    Raises:
        UsageError: the name is taken.
    """
    return add(DETECTORS, detector.name, detector, "a detector")


@dataclass(frozen=True)
class InputDetector:
    """A registered detector of poisoned images.

    Attributes:
        name: for tables.
        summary: one line.
        judges: "training" data with labels, or any "images".
        config: frozen dataclass of options.
        run: scores the images of an inspection; takes the options as its second argument.
    """

    name: str
    summary: str
    judges: Literal["training", "images"]
    config: type[Any]
    run: Callable[[Inspection, Any], InputScores]


INPUT_DETECTORS: dict[str, InputDetector] = {
    detector.name: detector
    for detector in (
        InputDetector(
            "frequency",
            "a network that knows traces of triggers in the DCT (ICCV 2021); needs clean images and no model",
            "images",
            FrequencyDetector,
            detect_frequency,
        ),
        InputDetector(
            "spectral-signatures",
            "outliers along the first singular vector of their class (NeurIPS 2018)",
            "training",
            SpectralSignatures,
            detect_spectral,
        ),
        InputDetector(
            "strip",
            "answers that stay when clean images are laid over (ACSAC 2019); runs on the deployed model",
            "images",
            STRIP,
            detect_strip,
        ),
    )
}


def register_input_detector(detector: InputDetector) -> InputDetector:
    """Add a detector of poisoned images, for plugins.

    Raises:
        UsageError: the name is taken.
    """
    return add(INPUT_DETECTORS, detector.name, detector, "a detector of images")
