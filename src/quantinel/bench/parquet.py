"""Rows as one typed Parquet table, for pandas, DuckDB and whatever else reads columns.

Every field of `ResultRow` is a column of its own type: integers, doubles, text, and ``created`` as a UTC timestamp.
An interval becomes two columns, ``cda_low`` and ``cda_high``. Fields whose keys differ from row to row (``published``,
``stages``, ``settings``, ``extra``, ``devices``, ``versions``) are JSON text: a struct would need every key of every
method, and would change its type with each new one. DuckDB reads them as ``extra->>'$.score'``, pandas with
``json.loads``.
``newest`` tells the row of a cell that counts from its history.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from quantinel.bench.row_file import latest
from quantinel.bench.rows import PERCENTAGES, ResultRow
from quantinel.data.guards import import_optional
from quantinel.files import write_file

_INTEGERS = ("seed", "n_clean", "n_triggered")
_DOUBLES = (*PERCENTAGES, "float_cda", "float_asr", "seconds")
_INTERVALS = tuple(f"{name}_interval" for name in PERCENTAGES)
_JSON = ("published", "stages", "settings", "extra", "devices", "versions")


def write_parquet(path: Path, rows: Sequence[ResultRow]) -> None:
    """Write a table; the file appears whole or not at all.

    Args:
        path: to write or replace.
        rows: oldest first, as in their files.

    Raises:
        UsageError: pyarrow is missing.
        OutputError: the file cannot be written.
    """
    arrow = import_optional("pyarrow", "writing Parquet", "quantinel[parquet]")
    parquet = import_optional("pyarrow.parquet", "writing Parquet", "quantinel[parquet]")
    newest = {
        id(row)
        for suite in {row.suite for row in rows}
        for row in latest(row for row in rows if row.suite == suite).values()
    }
    records = [{**record(row), "newest": id(row) in newest} for row in rows]
    kinds = {"text": arrow.string(), "integer": arrow.int64(), "double": arrow.float64(), "flag": arrow.bool_(),
             "time": arrow.timestamp("us", tz="UTC")}  # fmt: skip
    schema = arrow.schema([(name, kinds[kind]) for name, kind in column_kinds().items()])
    stream = io.BytesIO()
    parquet.write_table(arrow.Table.from_pylist(records, schema=schema), stream)
    write_file(path, stream.getvalue())


def column_kinds() -> dict[str, str]:
    """Columns in order: text, integer, double, flag or time."""
    kinds: dict[str, str] = {}
    for name in ResultRow.model_fields:
        if name in _INTERVALS:
            stem = name.removesuffix("_interval")
            kinds |= {f"{stem}_low": "double", f"{stem}_high": "double"}
        else:
            kinds[name] = (
                "integer" if name in _INTEGERS else "double" if name in _DOUBLES else "time" if name == "created"
                else "text"
            )  # fmt: skip
    return {**kinds, "newest": "flag"}


def record(row: ResultRow) -> dict[str, Any]:
    """A row's columns but for ``newest``."""
    columns: dict[str, Any] = {}
    for name, value in row.model_dump().items():
        if name in _INTERVALS:
            low, high = value or (None, None)
            stem = name.removesuffix("_interval")
            columns |= {f"{stem}_low": low, f"{stem}_high": high}
        elif name in _JSON:
            columns[name] = None if value is None else json.dumps(value, sort_keys=True)
        elif name == "created":
            columns[name] = datetime.fromisoformat(value)
        else:
            columns[name] = value
    return columns
