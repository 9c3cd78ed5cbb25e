"""The rows of a suite as files for other programs: CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from quantinel.bench.rows import ResultRow
from quantinel.bench.site.entries import SuitePages

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""Beginnings that spreadsheets take for formulas."""


def rows_json(pages: SuitePages) -> str:
    """The newest row of every cell, with the standing of its published figures."""
    rows = [{**_plain(entry.row), "standing": entry.standing} for entry in pages.entries if entry.row is not None]
    return json.dumps(rows, indent=1, allow_nan=False) + "\n"


def rows_csv(pages: SuitePages) -> str:
    """The same as a table; nested values are spread over columns with dots in their names."""
    flat = [
        {**_flat(_plain(entry.row)), "standing": entry.standing} for entry in pages.entries if entry.row is not None
    ]
    names = list(dict.fromkeys(name for line in flat for name in line)) or [*ResultRow.model_fields, "standing"]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, names, lineterminator="\n")
    writer.writerow({name: _harmless(name) for name in names})
    writer.writerows({name: _harmless(value) for name, value in line.items()} for line in flat)
    return stream.getvalue()


def _plain(row: ResultRow) -> dict[str, Any]:
    """A row as JSON values; what is no number is null."""
    plain: dict[str, Any] = json.loads(row.model_dump_json())
    return plain


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, item in value.items():
        if name.endswith("_interval"):
            low, high = item or (None, None)
            found |= {f"{prefix}{name}.low": low, f"{prefix}{name}.high": high}
        elif isinstance(item, dict):
            found |= _flat(item, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = json.dumps(item) if isinstance(item, list) else item
    return found


def _harmless(value: Any) -> Any:
    """Text that a spreadsheet would run as a formula gets an apostrophe in front."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
