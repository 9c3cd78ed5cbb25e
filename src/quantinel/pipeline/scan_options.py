"""What a scan is asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from quantinel.audit.suppressions import Suppression
from quantinel.audit.thresholds import Thresholds
from quantinel.errors import UsageError
from quantinel.pipeline.scan_checks import check_names
from quantinel.quantization.pruning import PruningScheme
from quantinel.quantization.scheme import QuantScheme

MIN_IMAGES = 2


@dataclass(frozen=True)
class ScanOptions:
    """What to look for; every field is recorded in the report.

    Attributes:
        schemes: grids that the model may be deployed on; each is scanned.
        prunings: how the model may be pruned; each is scanned for behaviour that only pruning wakes.
        detectors: names of the detectors to run; None for all. Without a required one there is no PASS.
        artefact: a quantized file that is said to come from the model, or None.
        budget: seconds that the detectors may work, infinite by default.
        images: how many of the images to use, class-balanced where there are labels.
        suppressions: accepted findings.
        thresholds: to judge by; None for those that come with Quantinel.
        seed: of everything random.
    """

    schemes: tuple[QuantScheme, ...] = (QuantScheme(),)
    prunings: tuple[PruningScheme, ...] = ()
    detectors: tuple[str, ...] | None = None
    artefact: Path | None = None
    budget: float = math.inf
    images: int = 256
    suppressions: tuple[Suppression, ...] = ()
    thresholds: Thresholds | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        names = [scheme.name for scheme in self.schemes]
        if not names or len(set(names)) < len(names):
            raise UsageError(f"the schemes are {', '.join(names) or 'none'}; give one or more, each once")
        if not self.budget > 0:
            raise UsageError(f"the budget is {self.budget} seconds; give a number above 0")
        if self.images < MIN_IMAGES:
            raise UsageError(f"{self.images} images are too few to scan with; give at least {MIN_IMAGES}")
        if self.artefact is not None and not self.artefact.exists():
            raise UsageError(f"the artefact {self.artefact} does not exist; give the quantized file that ships")
        check_names(self.detectors)
