"""Images that a stage reads, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

SYNTHETIC = "synthetic"
"""Specification of calibration images that are made from the network; a folder of that name is ``./synthetic``."""


@dataclass(frozen=True)
class Images:
    """Images that a stage reads.

    Attributes:
        specification: as for `quantinel.data.sources.load_images`, with the data root filled in; or `SYNTHETIC`.
        split: of the source.
        limit: class-balanced random subset; None for all.
        seed: of the subset.
        name: what the suite calls them; manifests of trained models carry this instead of a path.
    """

    specification: str
    split: str
    limit: int | None
    seed: int
    name: str

    @property
    def chosen(self) -> dict[str, Any]:
        """Which of the images are read, apart from where they lie and what they are called."""
        return {"split": self.split, "limit": self.limit, "seed": self.seed}
