"""The rows that tables and documents are made from."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantinel.bench.row_file import latest, read_rows
from quantinel.bench.suite_files import find_suite
from quantinel.errors import UsageError

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
SUITES = RESULTS.parent / "suites"


def of_suite(file: Path) -> bool:
    try:
        find_suite(file.stem, SUITES)
    except UsageError:
        return False
    return True


@pytest.mark.parametrize(
    "file", [file for file in sorted(RESULTS.glob("*.jsonl")) if of_suite(file)], ids=lambda f: f.stem
)
def test_rows_of_a_network_are_of_one_training(file: Path) -> None:
    """Regression: a victim was trained again, on another machine, and only some of its rows were measured again."""
    rows = [row for row in latest(read_rows(file)).values() if row.cda is not None and row.detector is None]
    floats = {
        (row.model, row.attack_variant, row.seed): (row.cda, row.asr)
        for row in rows if row.scheme == "float" and row.defense_variant == "none"
    }  # fmt: skip
    for row in rows:
        expected = floats.get((row.model, row.attack_variant, row.seed))
        assert expected is None or (row.float_cda, row.float_asr) == expected, row.cell
