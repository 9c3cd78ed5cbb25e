"""Detectors, by name."""

from __future__ import annotations

from dataclasses import dataclass

from quantinel.detectors.weight_residuals import Residuals, weight_residuals

__all__ = ["DETECTORS", "Detector", "Residuals", "weight_residuals"]


@dataclass(frozen=True)
class Detector:
    """A registered detector."""

    name: str
    summary: str


DETECTORS: dict[str, Detector] = {
    "weight-residuals": Detector(
        "weight-residuals", "share of weights at rounding boundaries against placebo grids; needs no images"
    )
}
