"""The schema of a scan report: documented, versioned, strict."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from quantinel.audit.rules import RULES
from quantinel.audit.scan_report import ScanCheck, ScanReport, read_any_report, scan_schema
from quantinel.errors import InputError

DOCS = Path(__file__).parents[2] / "docs"


def test_the_published_schema_is_current() -> None:
    """If a field was added: write `scan_schema()` to docs/scan-report.schema.json again."""
    assert json.loads((DOCS / "scan-report.schema.json").read_text("utf-8")) == scan_schema()


@pytest.mark.parametrize("model", [ScanReport, ScanCheck])
def test_every_field_is_documented(model: type[ScanReport] | type[ScanCheck]) -> None:
    text = (DOCS / "scan-report.md").read_text("utf-8")
    named = set(re.findall(r"`([a-z_0-9]+)`", text))
    assert set(model.model_fields) <= named


def test_every_rule_is_documented() -> None:
    text = (DOCS / "scan.md").read_text("utf-8")
    assert all(f"| {rule} |" in text for rule in RULES)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"format": "quantinel-scan-1"}', "is not a scan report of this version .version: Field required"),
        ('{"format": "quantinel-scan-2"}', "is not a Quantinel report"),
        ("[]", "is not a Quantinel report"),
        ("{", "is not a Quantinel report"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "scan.json"
    path.write_text(text, "utf-8")
    with pytest.raises(InputError, match=words):
        read_any_report(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_any_report(tmp_path / "missing.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="is not a Quantinel report"):
        read_any_report(tmp_path / "binary.json")
