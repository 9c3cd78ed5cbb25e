"""Archives that tests of reading start from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.model.archive_files import Tiny, export
from torch.export import Dim


@pytest.fixture(scope="module")
def static() -> bytes:
    torch.manual_seed(0)
    return export(Tiny().eval(), torch.rand(1, 3, 4, 4))


@pytest.fixture(scope="module")
def dynamic() -> bytes:
    torch.manual_seed(0)
    return export(Tiny().eval(), torch.rand(2, 3, 4, 4), dynamic_shapes=({0: Dim.AUTO},))


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """A file that exists when hostile code has run."""
    return tmp_path / "executed"
