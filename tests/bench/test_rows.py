from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from quantinel.audit.report import EvaluationRow, Rate
from quantinel.bench.rows import ResultRow, append_rows, latest, measured, provenance, read_rows
from quantinel.bench.tables import figure, hardening_table, replace_block
from quantinel.errors import InputError

ROOT = Path(__file__).parents[2]


def make_row(defense: str = "efrap", cda: float = 90.0) -> ResultRow:
    rate = Rate(percent=cda, interval95=(cda - 1, cda + 1), hits=int(cda * 10), n=1000)
    row = EvaluationRow(variant="hardened", backend="onnxruntime", cda=rate, asr=None, ta=None, agreement=None)
    return ResultRow(
        suite="hardening", attack="none", defense=defense, scheme="int8", compressor="static-ptq",
        architecture="resnet20", data="cifar10", seed=0, seconds=1.0,
        **measured(row, row), **provenance({"a": 1}, "python x.py"),
    )  # fmt: skip


def test_rows_survive_the_file(tmp_path: Path) -> None:
    path = tmp_path / "results" / "rows.jsonl"
    rows = [make_row(), make_row("nearest")]
    append_rows(path, rows[:1])
    append_rows(path, rows[1:])
    assert read_rows(path) == rows


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    append_rows(path, [make_row()])
    path.write_text(path.read_text() + '{"suite": 1}\n')
    with pytest.raises(InputError, match="line 2"):
        read_rows(path)


def test_the_newest_row_of_a_cell_counts() -> None:
    newest = latest([make_row(cda=80.0), make_row(cda=85.0)])
    assert [row.cda for row in newest.values()] == [85.0]
    assert "85.00 [84.0, 86.0]" in hardening_table([make_row(cda=80.0), make_row(cda=85.0)])


def test_configuration_decides_the_hash() -> None:
    first, same, other = (provenance(config, "c")["config_sha256"] for config in ({"a": 1}, {"a": 1}, {"a": 2}))
    assert first == same != other


def test_blocks_are_replaced_between_their_markers() -> None:
    text = "before\n<!-- table:x -->\nold\n<!-- end:x -->\nafter"
    assert replace_block(text, "x", "| new |") == "before\n<!-- table:x -->\n| new |\n<!-- end:x -->\nafter"
    with pytest.raises(InputError, match="no markers"):
        replace_block(text, "y", "")
    assert figure(None, None) == "-"


def test_published_tables_equal_their_rows() -> None:
    """Every figure of README and docs comes from a committed row."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "tables.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
