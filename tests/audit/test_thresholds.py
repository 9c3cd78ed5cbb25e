"""Calibrated thresholds: read strictly, never judged on what they were fitted on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from benchmarks import calibrate_scan
from benchmarks.tables.lines import RESULTS
from pydantic import ValidationError
from tests.audit.checks import threshold, thresholds

from quantinel.audit.rules import COMBINED
from quantinel.audit.thresholds import Thresholds, load_thresholds
from quantinel.bench.row_file import read_rows
from quantinel.detectors import DETECTORS
from quantinel.errors import InputError


def test_the_bundled_file_is_valid_and_knows_its_detectors() -> None:
    bundled = load_thresholds()
    assert {entry.detector for entry in bundled.entries} <= {*DETECTORS, COMBINED}
    assert all(entry.false_positives.n > 0 for entry in bundled.entries)
    assert not bundled.entries or (bundled.suite and bundled.rows_sha256 and bundled.commit)


def test_the_bundled_file_is_what_the_script_makes_of_the_rows() -> None:
    bundled = load_thresholds()
    rows = [row for suite in bundled.suite.split() for row in read_rows(RESULTS / f"{suite}.jsonl")]
    recipes = calibrate_scan.read_split(calibrate_scan.ROOT / "benchmarks" / "scan_split.toml")
    made = calibrate_scan.calibrate(rows, recipes, bundled.alpha, bundled.command, 5.0, scores=False)
    assert "--most 5.0" in bundled.command
    assert made == bundled.model_copy(update={"commit": made.commit, "created": made.created})


def test_an_entry_holds_for_its_bits_only() -> None:
    found = thresholds(threshold(weight_bits=(4, 5)), threshold("trigger-inversion", weight_bits=(2, 8)))
    assert [bits for bits in range(2, 9) if found.find("re-rounding", bits) is not None] == [4, 5]
    assert found.find("nothing", 8) is None


@pytest.mark.parametrize(
    ("statistic", "value", "exceeds"),
    [("score", 0.5, False), ("score", 0.51, True), ("p_value", 0.5, True), ("p_value", 0.51, False)],
)
def test_scores_are_suspicious_above_and_p_values_below(statistic: str, value: float, exceeds: bool) -> None:
    assert threshold(statistic=statistic).exceeded_by(value) is exceeds


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"judged_on": ["clean", "pruned"]}, "fitted on recipes that it is judged on: clean"),
        ({"judged_on": []}, "at least 1 item"),
        ({"false_positives": {"percent": None, "interval95": [0, 100], "hits": 0, "n": 0}}, "counted on no model"),
        ({"statistic": "p_value", "threshold": 0.0}, "no p-value between 0 and 1"),
        ({"statistic": "p_value", "threshold": -1.0}, "no p-value between 0 and 1"),
        ({"statistic": "p_value", "threshold": 1.0}, "no p-value between 0 and 1"),
        ({"false_positives": {"percent": 0, "interval95": [0, 1], "hits": 9, "n": 5}}, "more models than there were"),
        ({"weight_bits": (8, 4)}, "no range within 2 to 8"),
        ({"weight_bits": (1, 8)}, "no range within 2 to 8"),
        ({"weight_bits": None}, "re-rounding looks at a grid; give weight_bits"),
        ({"detector": "pruning-divergence"}, "looks at no grid; weight_bits must be null"),
        ({"threshold": float("nan")}, "finite"),
        ({"statistic": "z"}, "score"),
        ({"colour": "red"}, "Extra inputs"),
    ],
)
def test_impossible_entries_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        threshold(**changes)


def test_two_thresholds_for_one_detector_and_width_are_refused() -> None:
    with pytest.raises(ValidationError, match="two thresholds"):
        thresholds(threshold(weight_bits=(2, 5)), threshold(weight_bits=(5, 8)))
    assert thresholds(threshold(weight_bits=(2, 4)), threshold(weight_bits=(5, 8))).find("re-rounding", 5) is not None


def test_files_are_read_strictly(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(thresholds(threshold()).model_dump_json(), "utf-8")
    assert load_thresholds(path) == thresholds(threshold())
    content = json.loads(path.read_text("utf-8"))
    for broken in ("{", json.dumps(content | {"alpha": 2}), json.dumps(content | {"format": "other"})):
        path.write_text(broken, "utf-8")
        with pytest.raises(InputError, match=r"mine.json holds no valid thresholds: .*; write it again"):
            load_thresholds(path)
    path.write_bytes(b"\xff")
    with pytest.raises(InputError, match="not UTF-8"):
        load_thresholds(path)
    with pytest.raises(InputError, match="cannot be read"):
        load_thresholds(tmp_path / "missing.json")


def test_the_schema_is_strict() -> None:
    with pytest.raises(ValidationError):
        Thresholds.model_validate({**thresholds().model_dump(), "extra": 1})
