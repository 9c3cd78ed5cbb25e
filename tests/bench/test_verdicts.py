"""The table of verdicts, on made rows."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.tables import verdicts
from tests.bench.made_rows import made_row, made_suite

from quantinel.audit.combination import PARTS
from quantinel.audit.rules import COMBINED
from quantinel.audit.thresholds import load_thresholds


def test_detectors_with_options_are_not_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Regression: the last variant stood in for the detector, against a threshold that was fitted without options."""
    suite = made_suite(
        detectors={"few": {"method": PARTS[0], "settings": {"copies": 5}}}, published=[],
        cells=[{"models": "victim", "schemes": "int8", "detectors": [*PARTS, "few"]}],
    )  # fmt: skip
    extra = {"score": 1.0, "p_value": 0.5, "images": 256}
    rows = [made_row(suite, f"victim/none/int8/{name}/s0", extra=extra) for name in PARTS]
    rows.append(
        made_row(
            suite, "victim/none/int8/few/s0", detector=PARTS[0], settings={"detector": {"copies": 5}},
            extra=extra | {"p_value": 1e-9},
        )
    )  # fmt: skip
    (tmp_path / "made.jsonl").write_text("".join(row.model_dump_json() + "\n" for row in rows), "utf-8")
    monkeypatch.setattr(verdicts, "RESULTS", tmp_path)
    ((_, found),) = verdicts.scanned(load_thresholds().model_copy(update={"suite": "made"})).values()
    assert set(found) == {*PARTS, COMBINED}
    assert found[PARTS[0]].extra["p_value"] == 0.5
