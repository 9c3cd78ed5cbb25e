from __future__ import annotations

import dataclasses
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.bench.fakes import request, use_fake_stages

from quantinel.bench.execution import execute
from quantinel.bench.store import LOG, Store, check_stored


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_stages(monkeypatch)


def test_a_result_is_stored_with_its_log(tmp_path: Path) -> None:
    asked = request(tmp_path, a=1)
    done = execute(asked)
    assert (done.outcome, done.error, done.log) == ("ok", None, None)
    stored = check_stored(Store(tmp_path).folder(asked.where))
    assert stored.config == {"threads": 1, "a": 1}
    assert (Store(tmp_path).folder(asked.where) / LOG).read_text().count("\n") == 2


def test_a_stored_result_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = request(tmp_path, do="gate")
    first = execute(asked)
    monkeypatch.setitem(sys.modules, "quantinel.bench.stages.train", SimpleNamespace())
    second = execute(asked)
    assert (second.outcome, second.error, second.seconds) == ("gate_failed", first.error, 0.0)


def test_a_failed_gate_is_a_result(tmp_path: Path) -> None:
    asked = request(tmp_path, do="gate")
    done = execute(asked)
    assert (done.outcome, done.error) == ("gate_failed", "it does not wake")
    stored = check_stored(Store(tmp_path).folder(asked.where))
    assert (stored.status, stored.error) == ("gate_failed", "it does not wake")
    assert "value.json" in stored.files


@pytest.mark.parametrize(
    ("do", "error", "trace"),
    [("fail", "no such thing at all", False), ("bug", "ZeroDivisionError: oops", True)],
)
def test_a_failure_is_one_line_and_a_log(tmp_path: Path, do: str, error: str, trace: bool) -> None:
    asked = request(tmp_path, do=do)
    done = execute(asked)
    assert (done.outcome, done.error) == ("failed", error)
    assert done.log is not None
    assert f"failed: {error}" in done.log
    assert ("Traceback" in done.log) == trace
    assert list(Store(tmp_path).all()) == []
    assert not list(tmp_path.glob("objects/*/*/*"))


def test_an_interruption_leaves_no_result(tmp_path: Path) -> None:
    asked = request(tmp_path, do="wait")
    assert execute(asked, lambda: True).outcome == "interrupted"
    assert Store(tmp_path).find(asked.where) is None


def test_waiting_for_another_run_is_interrupted_too(tmp_path: Path) -> None:
    asked = request(tmp_path)
    with Store(tmp_path).lock(asked.where):
        assert execute(asked, lambda: True).outcome == "interrupted"
    assert execute(asked).outcome == "ok"


def test_a_store_that_cannot_be_written_to_fails_the_stage(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = execute(request(tmp_path / "file" / "store"))
    assert done.outcome == "failed"
    assert "cannot write" in str(done.error)


def test_a_worker_with_other_code_refuses(tmp_path: Path) -> None:
    asked = dataclasses.replace(request(tmp_path), modules=("quantinel.bench.stages.train",))
    done = execute(asked)
    assert done.outcome == "failed"
    assert "code differs" in str(done.error)
    assert Store(tmp_path).find(asked.where) is None


def test_threads_and_warnings_are_of_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def run(job: Any) -> None:
        seen.append(torch.get_num_threads())
        warnings.warn("odd input", stacklevel=1)

    monkeypatch.setitem(sys.modules, "quantinel.bench.stages.train", SimpleNamespace(run=run))
    before = torch.get_num_threads()
    asked = request(tmp_path, threads=before + 1)
    assert execute(asked).outcome == "ok"
    assert seen == [before + 1]
    assert torch.get_num_threads() == before
    assert "warning: odd input" in (Store(tmp_path).folder(asked.where) / LOG).read_text()
