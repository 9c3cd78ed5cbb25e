"""The rows that tables and documents are made from."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

from quantinel.bench.row_file import latest, read_rows
from quantinel.bench.rows import ResultRow
from quantinel.bench.suite_files import find_suite
from quantinel.errors import UsageError
from quantinel.model.victim import read_manifest

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
SUITES, VICTIMS = RESULTS.parent / "suites", RESULTS.parent / "victims"
CHANGED = {"prune", "qat", "repair"}
"""Stages that make other weights of a victim's."""


def of_suite(file: Path) -> bool:
    try:
        find_suite(file.stem, SUITES)
    except UsageError:
        return False
    return True


def rows_of(file: Path) -> list[ResultRow]:
    return list(latest(read_rows(file)).values())


every_suite = pytest.mark.parametrize(
    "file", [file for file in sorted(RESULTS.glob("*.jsonl")) if of_suite(file)], ids=lambda f: f.stem
)


@every_suite
def test_rows_of_a_network_are_of_one_training(file: Path) -> None:
    """Regression: a victim was trained again, on another machine, and only some of its rows were measured again."""
    rows = [row for row in rows_of(file) if row.cda is not None and row.detector is None]
    floats = {
        (row.model, row.attack_variant, row.seed): (row.cda, row.asr)
        for row in rows if row.scheme == "float" and row.defense_variant == "none"
    }  # fmt: skip
    for row in rows:
        expected = floats.get((row.model, row.attack_variant, row.seed))
        assert expected is None or (row.float_cda, row.float_asr) == expected, row.cell


@every_suite
def test_rows_name_the_weights_of_the_kept_victim(file: Path) -> None:
    kept = {path.parent.name: read_manifest(path.parent) for path in (VICTIMS / file.stem).glob("*/victim.json")}
    weights = defaultdict(set)
    for row in rows_of(file):
        if row.weights_sha256 is not None and not CHANGED & set(row.stages):
            weights[row.model, row.attack_variant, row.seed].add(row.weights_sha256)
    for (model, attack, seed), found in weights.items():
        assert len(found) == 1, (model, attack, seed)
        victim = kept.get(f"{model}-{attack}", kept.get(attack))
        assert victim is None or victim.seed != seed or found == {victim.weights_sha256}, (model, attack)
