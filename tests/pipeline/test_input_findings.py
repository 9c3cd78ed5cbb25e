"""What `harden` says about its input: the data-free part of a scan."""

from __future__ import annotations

import pytest
from tests.pipeline.fake_detectors import calibrated, install

from quantinel.detectors import Detection, Subject
from quantinel.model.graph import FloatGraph, trace
from quantinel.model.loading import load_model
from quantinel.pipeline import input_findings as module
from quantinel.pipeline.input_findings import input_findings
from quantinel.quantization.scheme import QuantScheme, parse_scheme


def test_a_projected_victim_is_noticed_on_its_own_grid() -> None:
    model = load_model("bundled:victim_int4")
    graph = trace(model.module, model.input_shape)
    levels = {}
    for name in ("int4", "int8"):
        found = input_findings(Subject(graph, parse_scheme(name), None, 0))
        levels[name] = next(finding.level for finding in found if finding.id == "QCB003")
    assert levels["int4"] in ("warning", "error")
    assert levels["int8"] == "info"


def test_detectors_that_need_images_do_not_run(odd_graph: FloatGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"weight-residuals": Detection(0.9), "re-rounding": AssertionError("ran without images")}
    install(monkeypatch, answers, weights=("weight-residuals",))
    monkeypatch.setattr(module, "load_thresholds", lambda: calibrated("weight-residuals"))
    (finding,) = input_findings(Subject(odd_graph, QuantScheme(), None, 0))
    assert (finding.id, finding.level) == ("QCB003", "error")
    assert "on grids that are 7 % off" in finding.detail
