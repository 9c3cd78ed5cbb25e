"""A purified float checkpoint (W := scale * codes) keeps its integers when an ordinary tool quantizes it again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.interop.networks import network
from tests.interop.requantization import SETTINGS, export_purified, kept_percent, requantized

from quantinel.data.sources import load_images

pytestmark = [
    pytest.mark.interop,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(scope="module")
def purified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("purified") / "float.onnx"
    export_purified(network("resnet20")[0], path)
    return path


def test_per_channel_int8_reproduces_every_integer(purified: Path) -> None:
    model = network("resnet20")[0]
    setting = next(iter(SETTINGS))
    weights = requantized(purified, load_images("bundled:calibration", limit=64), setting)
    assert kept_percent(model, weights) == 100.0
    for layer, (_, scale) in zip(model.layers.values(), weights, strict=True):
        np.testing.assert_allclose(scale, layer.scale.numpy().reshape(-1), rtol=1e-6)


@pytest.mark.parametrize("setting", list(SETTINGS)[1:])
def test_other_settings_do_not(purified: Path, setting: str) -> None:
    """docs/verification.md warns of these; a release that keeps the integers would make the warning obsolete."""
    weights = requantized(purified, load_images("bundled:calibration", limit=64), setting)
    assert kept_percent(network("resnet20")[0], weights) < 100.0
