"""A checkpoint is scanned without a model, and never passes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.pipeline.fake_detectors import calibrated

from quantinel.errors import InputError
from quantinel.model.loading import bundled_model
from quantinel.pipeline.scan_file import scan_file
from quantinel.pipeline.scan_options import ScanOptions
from quantinel.quantization.pruning import parse_pruning
from quantinel.quantization.scheme import parse_scheme

VICTIM = bundled_model("bundled:victim_int4") / "model.safetensors"
INT4 = (parse_scheme("int4"),)


@pytest.mark.parametrize(("limit", "verdict"), [(0.001, "FAIL"), (1e9, "INCONCLUSIVE")])
def test_a_file_fails_or_stays_without_verdict(limit: float, verdict: str) -> None:
    options = ScanOptions(schemes=INT4, thresholds=calibrated("edge-atoms", "residual-fit", limit=limit))
    report = scan_file(VICTIM, options)
    assert report.verdict == verdict
    status = {check.detector: check.status for check in report.checks}
    assert status["edge-atoms"] == ("fail" if verdict == "FAIL" else "pass")
    assert status["compressed-behaviour"] == "not_run"
    assert len(str(report.model["sha256"])) == 64
    assert any("does not say" in line for line in report.not_checked)


def test_pruning_is_missed_too() -> None:
    prunings = (parse_pruning("prune-magnitude-0.5"),)
    options = ScanOptions(schemes=INT4, prunings=prunings, thresholds=calibrated())
    report = scan_file(VICTIM, options)
    assert "prune-magnitude-0.5/pruning-divergence" in {check.id for check in report.checks}
    assert report.verdict == "INCONCLUSIVE"


def test_files_without_weights_are_not_assessable(tmp_path: Path) -> None:
    save_file({"bias": torch.zeros(3)}, tmp_path / "small.safetensors")
    report = scan_file(tmp_path / "small.safetensors", ScanOptions(schemes=INT4))
    assert report.verdict == "INCONCLUSIVE"
    assert all(check.status == "not_run" for check in report.checks)
    (tmp_path / "broken.safetensors").write_bytes(b"\x10" * 40)
    with pytest.raises(InputError):
        scan_file(tmp_path / "broken.safetensors", ScanOptions(schemes=INT4))
