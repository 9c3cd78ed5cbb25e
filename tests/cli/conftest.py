"""A tiny model, tiny data, and the command line as a function."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file
from tiny_networks import Quadrants

from quantinel.cli.main import main


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


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process, and catch what it writes, libraries in C included."""

    def call(*arguments: object) -> Ran:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return Ran(code, captured.out, captured.err)

    return call


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
            "harden", str(model or self.weights), "--factory", "tiny_networks:quadrants", "--input-shape", "3,8,8",
            "--data", str(data or self.images), "--calibration-images", "16", "--quiet", "-o", str(output),
        ]  # fmt: skip


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """The tiny model, 64 images, and a white dot that is no trigger for it."""
    folder = tmp_path_factory.mktemp("tiny")
    save_file(Quadrants().state_dict(), folder / "model.safetensors")
    images, labels = quadrant_images(64)
    np.savez(folder / "images.npz", images=images, labels=labels)
    patch = {"kind": "patch", "row": 0, "column": 0, "height": 1, "width": 1, "value": 1.0}
    (folder / "trigger.json").write_text(json.dumps(patch), "utf-8")
    return Tiny(folder / "model.safetensors", folder / "images.npz", folder / "trigger.json")


@pytest.fixture(scope="session")
def hardened(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hardened folder; copy it before changing it."""
    output = tmp_path_factory.mktemp("hardened") / "out"
    assert main(tiny.harden(output)) == 0
    return output


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """A folder in which nothing may be left."""
    folder = tmp_path / "work"
    folder.mkdir()
    return folder
