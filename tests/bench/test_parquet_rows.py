from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from tests.bench.made_rows import EFRAP, made_row, made_rows, made_suite

from quantinel.bench.parquet import column_kinds, write_parquet
from quantinel.bench.rows import ResultRow
from quantinel.errors import UsageError

pytest.importorskip("pyarrow")


@pytest.fixture
def rows() -> list[ResultRow]:
    suite = made_suite()
    again = made_row(suite, EFRAP, cda=91.0, asr=1.0, key="again", settings={"defense": {"steps": 3}}, seed=2**63 - 1)
    failed = made_row(suite, "clean/none/int8/efrap/s0", status="failed", error="x", published={"cda": 90.0})
    return [*made_rows(suite), failed, again]


@pytest.fixture
def path(tmp_path: Path, rows: list[ResultRow]) -> Path:
    write_parquet(tmp_path / "rows.parquet", rows)
    return tmp_path / "rows.parquet"


def test_rows_come_back_through_pandas(path: Path, rows: list[ResultRow]) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_parquet(path)
    assert list(frame.columns) == list(column_kinds())
    assert len(frame) == len(rows)
    for row, (_, record) in zip(rows, frame.iterrows(), strict=True):
        for name, value in row.model_dump().items():
            if name.endswith("_interval"):
                stem = name.removesuffix("_interval")
                ends = [record[f"{stem}_low"], record[f"{stem}_high"]]
                assert pandas.isna(ends).all() if value is None else tuple(ends) == value
            elif value is None:
                assert pandas.isna(record[name]), name
            elif isinstance(value, dict):
                assert json.loads(record[name]) == value
            elif name == "created":
                assert record[name].isoformat() == value
            else:
                assert record[name] == value, name
    assert str(frame.dtypes["seed"]) == "int64"
    assert str(frame.dtypes["cda"]) == "float64"


def test_duckdb_queries_columns_and_json(path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    with duckdb.connect() as connection:
        newest = connection.execute(
            "select cda, seed from read_parquet(?) where newest and cell = ?", [str(path), EFRAP]
        ).fetchall()
        assert newest == [(91.0, 2**63 - 1)]
        flips = connection.execute(
            "select cell, (extra->>'$.flips_percent')::double from read_parquet(?) where asr < asr_high and "
            "defense = 'efrap' and extra->>'$.flips_percent' is not null",
            [str(path)],
        ).fetchall()
        assert flips == [(EFRAP, 50.5)]


def test_without_pyarrow_there_is_one_line_and_no_file(
    tmp_path: Path, rows: list[ResultRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"pip install 'quantinel\[parquet\]'"):
        write_parquet(tmp_path / "rows.parquet", rows)
    assert not list(tmp_path.iterdir())
