"""Imports go one way: the layers of docs/architecture.md, read from the sources."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCES = Path(__file__).parent.parent / "src" / "quantinel"

LAYERS = (
    {"errors"},
    {"files", "metrics", "plugins", "validation"},
    {"data"},
    {"model"},
    {"quantization"},
    {"training", "inversion"},
    {"attacks", "defenses", "detectors"},
    {"backends"},
    {"audit"},
    {"reports"},
    {"pipeline"},
    {"bench"},
    {"cli"},
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
CATALOGUE = ("__init__.py", "__main__.py")  # of the package itself: they name everything


def part_of(path: Path) -> str:
    """The layer's member that a file belongs to."""
    return path.relative_to(SOURCES).parts[0].removesuffix(".py")


def imported_parts(path: Path) -> Iterator[tuple[int, str]]:
    """(line, member) of every import of this package, function bodies and type-checking blocks included."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno} is a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            package, _, rest = name.partition(".")
            if package == "quantinel":
                yield node.lineno, rest.partition(".")[0]


FILES = sorted(path for path in SOURCES.rglob("*.py") if str(path.relative_to(SOURCES)) not in CATALOGUE)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCES)))
def test_imports_go_one_way(path: Path) -> None:
    own = part_of(path)
    assert own in RANK, f"{own} belongs to no layer; add it to LAYERS"
    for line, other in imported_parts(path):
        assert other in RANK, f"{path.name}:{line} imports quantinel.{other}, which belongs to no layer"
        assert other == own or RANK[other] < RANK[own], f"{path.name}:{line}: {own} must not import {other}"


def test_the_check_sees_imports() -> None:
    found = {other for _, other in imported_parts(SOURCES / "pipeline" / "harden.py")}
    assert {"audit", "backends", "data", "defenses", "model", "quantization"} <= found


def test_heavy_packages_are_not_imported_by_the_command_line_at_start() -> None:
    """Module level of cli/ and of what it imports there: no torch, numpy, onnx, pydantic or rich."""
    for path in [*(SOURCES / "cli").glob("*.py"), SOURCES / "__init__.py", SOURCES / "errors.py"]:
        for node in ast.parse(path.read_text("utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [str(node.module)]
            heavy = {name.partition(".")[0] for name in names} & {"torch", "numpy", "onnx", "pydantic", "rich"}
            assert not heavy, f"{path.name}:{node.lineno} imports {heavy}"
