"""The public catalogue resolves, is complete, and costs nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import quantinel


@pytest.mark.parametrize("name", quantinel.__all__)
def test_every_public_name_resolves(name: str) -> None:
    value = getattr(quantinel, name)
    assert value is not None
    assert getattr(quantinel, name) is value or name == "__version__"


def test_names_for_type_checkers_are_the_names_at_run_time() -> None:
    tree = ast.parse(Path(str(quantinel.__file__)).read_text("utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If) and isinstance(node.test, ast.Name))
    names = {"__version__"}
    for node in block.body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                names.add(alias.name)
                home = getattr(getattr(quantinel, alias.name), "__module__", node.module)
                assert node.module == "quantinel" or home == node.module or home.startswith(f"{node.module}.")
    assert names == set(quantinel.__all__)
    assert list(quantinel.__all__) == sorted(quantinel.__all__)


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'harden_all'"):
        quantinel.harden_all  # noqa: B018
    assert set(quantinel.__all__) <= set(dir(quantinel))


def test_import_is_light() -> None:
    code = "import quantinel, sys; print('torch' in sys.modules, 'numpy' in sys.modules, quantinel.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", quantinel.__version__]
