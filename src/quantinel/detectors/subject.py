"""What every detector is given and what it returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from quantinel.data.images import ImageSet
from quantinel.model.graph import FloatGraph
from quantinel.quantization.scheme import QuantScheme


@dataclass(frozen=True)
class Subject:
    """A float model under suspicion.

    Attributes:
        graph: folded float network.
        scheme: the grid that it is to be deployed on.
        images: unlabeled images; None for detectors that need none.
        seed: of everything random.
    """

    graph: FloatGraph
    scheme: QuantScheme
    images: ImageSet | None
    seed: int


@dataclass(frozen=True)
class Detection:
    """What a detector found.

    Attributes:
        score: higher is more suspicious; comparable between models, no probability.
        statistics: the figures behind it, by name.
    """

    score: float
    statistics: Mapping[str, float] = field(default_factory=dict)
