from __future__ import annotations

from pathlib import Path

import pytest
from tests.bench.fakes import HEAD, SMALL, InProcess, use_fake_stages, write_suite

from quantinel.bench.cells import expand
from quantinel.bench.row_file import read_rows
from quantinel.bench.rows import ResultRow
from quantinel.bench.runner import Options, Summary, run_suite
from quantinel.bench.store import Store, check_stored
from quantinel.bench.suite import Suite
from quantinel.errors import InputError
from quantinel.model.loading import bundled_model
from quantinel.model.victim import read_manifest

MANY = (
    HEAD
    + """
[[cells]]
models = "v"
schemes = "own"
defenses = ["nearest", "quick"]
detectors = "weight-residuals"
[[cells]]
models = "fresh"
attacks = ["none", "short"]
schemes = "int8"
defenses = "nearest"
[[published]]
source = "Paper"
model = "v"
defense = "quick"
cda = 89.5
tolerance = 1.0
"""
)


def run(folder: Path, suite: Suite, workers: InProcess | None = None) -> Summary:
    options = Options(folder / "results", folder / "store")
    return run_suite(suite, expand(suite), options, workers or InProcess())


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    return write_suite(tmp_path, MANY)


@pytest.fixture
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_stages(monkeypatch)


@pytest.mark.usefixtures("_fake")
def test_every_cell_is_a_row_and_a_second_run_adds_none(tmp_path: Path, suite: Suite) -> None:
    first = run(tmp_path, suite)
    cells = [cell.id for cell in expand(suite)]
    assert [row.cell for row in first.rows] == cells
    assert (first.added, first.ran, first.open) == (len(cells), first.stages, [])
    rows = {row.cell: row for row in read_rows(tmp_path / "results" / "fake.jsonl")}
    assert set(rows) == set(cells)
    assert all(row.status == "ok" for row in rows.values())
    quick = rows["v/none/int8/quick/s0"]
    assert (quick.defense, quick.defense_variant) == ("efrap-released", "quick")
    assert quick.settings == {"defense": {"iterations": 5}}
    assert quick.published == {"cda": 89.5}
    assert rows["v/none/int8/nearest/s0"].published is None
    extra = rows["v/none/int8/weight-residuals/s0"].extra  # a statistic may be called like a field of the row
    assert extra == {"p": 2.0, "score": 1.5, "images": 0}
    assert set(rows["fresh/short/int8/nearest/s0"].stages) == {"train", "attack", "compress", "defend", "evaluate"}
    assert rows["fresh/short/int8/nearest/s0"].devices == {"train": "cpu", "attack": "cpu"}
    assert quick.devices == {}
    assert {row.weights_sha256 for row in rows.values()} == {"f" * 64}
    second = run(tmp_path, suite)
    assert (second.added, second.ran) == (0, 0)
    assert [row.repeatable() for row in second.rows] == [row.repeatable() for row in first.rows]


@pytest.mark.usefixtures("_fake")
def test_two_stores_give_the_same_rows(tmp_path: Path, suite: Suite) -> None:
    one, two = run(tmp_path / "one", suite), run(tmp_path / "two", suite, InProcess(3))
    assert [row.repeatable() for row in one.rows] == [row.repeatable() for row in two.rows]


@pytest.mark.usefixtures("_fake")
def test_a_failed_cell_is_a_row_and_the_others_go_on(tmp_path: Path, suite: Suite) -> None:
    label = "attack fresh with short, seed 0"
    workers = InProcess(broken=(label,))
    told: list[ResultRow] = []
    options = Options(tmp_path / "results", tmp_path / "store")
    summary = run_suite(suite, expand(suite), options, workers, stored=told.append)
    failed = {row.cell: row.error for row in summary.rows if row.status == "failed"}
    assert set(failed) == {"fresh/short/float/none/s0", "fresh/short/int8/nearest/s0"}
    assert set(failed.values()) == {f"{label}: the worker process died (signal SIGKILL)"}
    assert all(row.cda is None for row in summary.rows if row.status == "failed")
    assert [row.status for row in summary.rows].count("ok") == len(summary.rows) - 2
    assert {row.cell for row in told} == {row.cell for row in summary.rows}
    run(tmp_path, suite, InProcess(broken=(label,)))
    path = tmp_path / "results" / "fake.jsonl"
    assert len(read_rows(path)) == len(summary.rows)  # the same failure again is no new row
    assert run(tmp_path, suite).added == 2
    assert {row.cell for row in read_rows(path)[-2:]} == set(failed)


@pytest.mark.usefixtures("_fake")
def test_an_interrupted_run_has_rows_of_what_is_over(tmp_path: Path, suite: Suite) -> None:
    workers = InProcess()
    options = Options(tmp_path / "results", tmp_path / "store", should_stop=lambda: len(workers.given) >= 8)
    summary = run_suite(suite, expand(suite), options, workers)
    assert summary.open
    assert len(summary.open) + len(summary.rows) == len(expand(suite))
    assert [row.cell for row in read_rows(tmp_path / "results" / "fake.jsonl")] != []
    rest = run(tmp_path, suite)
    assert rest.open == []
    assert rest.ran == rest.stages - 8


@pytest.mark.usefixtures("_fake")
def test_a_damaged_file_of_rows_is_an_error_before_any_work(tmp_path: Path, suite: Suite) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "fake.jsonl").write_text("no row\n")
    workers = InProcess()
    with pytest.raises(InputError, match="line 1 is not a result row"):
        run(tmp_path, suite, workers)
    assert workers.given == []


def test_a_bundled_victim_from_end_to_end(tmp_path: Path) -> None:
    suite = write_suite(
        tmp_path, SMALL.replace('defenses = "nearest"', 'defenses = "nearest"\ndetectors = "weight-residuals"')
    )
    summary = run(tmp_path, suite)
    floating, nearest, scan = summary.rows
    assert [row.status for row in summary.rows] == ["ok"] * 3, [row.error for row in summary.rows]
    assert floating.cda is not None
    assert floating.cda > 80
    assert floating.asr is not None
    assert floating.asr < 10  # it sleeps
    assert nearest.asr is not None
    assert nearest.asr > 90  # and wakes
    assert (nearest.float_cda, nearest.float_asr) == (floating.cda, floating.asr)
    assert nearest.extra["layers_equal"] == nearest.extra["layers"]
    assert (nearest.backend, nearest.architecture, nearest.attack) == ("onnxruntime", "resnet20", "pq-backdoor")
    assert isinstance(scan.extra["score"], float)
    manifest = read_manifest(bundled_model("bundled:victim_int8"))
    assert {row.weights_sha256 for row in summary.rows} == {manifest.weights_sha256}
    found = list(Store(tmp_path / "store").all())
    assert sorted(stored.stage for _, stored in found) == ["compress", "defend", "detect", "evaluate", "evaluate"]
    for folder, _ in found:
        check_stored(folder)
    again = run(tmp_path / "again", suite)
    assert [row.repeatable() for row in again.rows] == [row.repeatable() for row in summary.rows]
