"""Where the images that come with Quantinel lie; apart from `sources`, so that naming them loads no library."""

from __future__ import annotations

from pathlib import Path

from quantinel.data.guards import printable
from quantinel.errors import InputError, UsageError

_ASSETS = Path(__file__).parent.parent / "assets"
BUNDLED_IMAGES = {"bundled:test": "cifar10_test.npz", "bundled:calibration": "cifar10_calibration.npz"}
"""Specification -> file."""


def bundled_images(specification: str) -> Path:
    """The file of a bundled set.

    Raises:
        UsageError: there is no such set.
        InputError: it is missing from this installation.
    """
    if specification not in BUNDLED_IMAGES:
        raise UsageError(f"the bundled images are {' and '.join(BUNDLED_IMAGES)}, not {specification}")
    path = _ASSETS / BUNDLED_IMAGES[specification]
    if not path.exists():
        raise InputError(
            f"{specification} is missing from this installation ({printable(path)}); reinstall quantinel, "
            "or give other data, such as cifar10:DIR"
        )
    return path
