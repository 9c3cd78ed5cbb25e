"""A tiny model, tiny data, and the command line as a function."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file
from tests.cli.tiny_cli import Ran, Run, Tiny, quadrant_images
from tests.cli.tiny_networks import Quadrants

from quantinel.cli.main import main


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process, and catch what it writes, libraries in C included."""

    def call(*arguments: object) -> Ran:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return Ran(code, captured.out, captured.err)

    return call


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
