from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from tests.bench.made_rows import EFRAP, made_row, made_rows, made_suite

from quantinel.bench.mlflow_log import MlflowLog
from quantinel.bench.rows import ResultRow
from quantinel.errors import OutputError, UsageError


@pytest.fixture
def uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    pytest.importorskip("mlflow.tracking")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # the one store that needs no server
    return (tmp_path / "mlruns").as_uri()


def runs(uri: str) -> dict[str, Any]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("quantinel/made")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    assert len({run.info.run_name for run in found}) == len(found)
    return {run.info.run_name: run for run in found}


def test_a_row_becomes_a_run(uri: str) -> None:
    suite = made_suite()
    row: ResultRow = made_row(
        suite, EFRAP, cda=90.0, asr=2.0, seconds=5.0, published={"asr": 2.07}, stages={"defend": 5.0},
        settings={"defense": {"iterations": 5}}, extra={"flips_percent": 50.0, "note": "text"},
    )  # fmt: skip
    MlflowLog(uri, "made").add(row)
    run = runs(uri)[EFRAP]
    assert run.data.metrics.items() >= {
        "cda": 90.0, "asr": 2.0, "seconds": 5.0, "paper.asr": 2.07, "extra.flips_percent": 50.0, "seconds.defend": 5.0,
    }.items()  # fmt: skip
    assert run.data.metrics["cda_low"] < 90.0 < run.data.metrics["cda_high"]
    assert "ta" not in run.data.metrics
    assert run.data.params["defense.iterations"] == "5"
    assert run.data.params["scheme"] == "int8"
    assert run.data.tags["quantinel.commit"] == "abc1234"
    assert run.info.status == "FINISHED"
    assert run.info.end_time - run.info.start_time == 5000


def test_the_same_row_is_logged_once(uri: str) -> None:
    suite = made_suite()
    for _ in range(2):
        log = MlflowLog(uri, "made")
        for row in made_rows(suite):
            log.add(row)
            log.add(row.model_copy(update={"seconds": 7.0, "commit": "other"}))
    assert len(runs(uri)) == 4


def test_failed_cells_are_failed_runs(uri: str) -> None:
    MlflowLog(uri, "made").add(made_row(made_suite(), EFRAP, status="failed", error="out of memory"))
    run = runs(uri)[EFRAP]
    assert run.info.status == "FAILED"
    assert run.data.tags["quantinel.error"] == "out of memory"


def test_a_store_that_cannot_be_used_is_one_line(uri: str) -> None:
    with pytest.raises(OutputError, match="nonsense://x") as caught:
        MlflowLog("nonsense://x", "made")
    assert "\n" not in str(caught.value)


def test_without_mlflow_there_is_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setitem(sys.modules, "mlflow.tracking", None)
    with pytest.raises(UsageError, match=r"pip install 'quantinel\[mlflow\]'"):
        MlflowLog("http://localhost:1", "made")
