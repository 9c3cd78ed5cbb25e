"""What the tests of the command line share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FACTORY = "tests.cli.tiny_networks:quadrants"


@dataclass(frozen=True)
class Ran:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The only line on stderr, which must be an error."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("quantinel: error: "), self.err
        return lines[0]


Run = Callable[..., Ran]


def quadrant_images(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """``count`` images (N, 8, 8, 3) uint8 with one bright quadrant, and which one it is."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 4
    images = generator.integers(20, 60, (count, 8, 8, 3))
    for index, label in enumerate(labels):
        row, column = divmod(int(label), 2)
        images[index, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 120
    return images.astype(np.uint8), labels


@dataclass(frozen=True)
class Tiny:
    """Files of the tiny model and its data."""

    weights: Path
    images: Path
    trigger: Path

    def harden(self, output: Path, *, model: Path | None = None, data: Path | None = None) -> list[str]:
        """A command that hardens the tiny model and passes."""
        return [
            "harden", str(model or self.weights), "--factory", FACTORY, "--input-shape", "3,8,8",
            "--data", str(data or self.images), "--calibration-images", "16", "--quiet", "-o", str(output),
        ]  # fmt: skip
