"""What ``bench table``, ``diff``, ``export`` and ``merge`` print, write and end with."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from tests.bench.made_rows import made_row
from tests.cli.tiny_cli import Run

from quantinel.bench.row_file import append_rows, read_rows
from quantinel.bench.suite import Suite
from quantinel.bench.suite_files import find_suite, load_suite
from quantinel.errors import EXIT_ERROR, EXIT_FINDINGS, EXIT_PASS, EXIT_USAGE

NEAREST = "victim-int8/none/int8/nearest/s0"
EFRAP = "victim-int8/none/int8/efrap/s0"
SCORE = "victim-int8/none/int8/weight-residuals/s0"


@pytest.fixture(scope="module")
def smoke() -> Suite:
    return load_suite(find_suite("smoke", None))


@pytest.fixture
def results(tmp_path: Path, smoke: Suite) -> Path:
    rows = [
        made_row(smoke, NEAREST, cda=88.0, asr=99.0, attack="pq-backdoor"),
        made_row(smoke, EFRAP, cda=90.0, asr=2.0, attack="pq-backdoor"),
        made_row(smoke, SCORE, extra={"score": 0.5}, attack="pq-backdoor"),
    ]
    append_rows(tmp_path / "results" / "smoke.jsonl", rows)
    return tmp_path / "results"


@pytest.mark.parametrize("verb", ["table", "diff", "export", "merge"])
def test_every_verb_has_help_with_an_example(run: Run, verb: str) -> None:
    done = run("bench", verb, "--help")
    assert done.code == EXIT_PASS
    assert f"\n    quantinel bench {verb}" in done.out


def test_table_in_every_format(run: Run, results: Path, tmp_path: Path) -> None:
    done = run("bench", "table", "smoke", "--results", results)
    assert (done.code, done.err) == (EXIT_PASS, "")
    assert "| victim-int8 | pq-backdoor | int8 | efrap | 90.00 [88.0, 91.7] |" in done.out
    assert "**Smoke test: detectors**" in done.out
    assert "not run" in done.out
    assert run("bench", "table", "smoke", "--results", results, "-f", "latex").out.count(r"\begin{table}") == 2
    done = run("bench", "table", "smoke", "--results", results, "-f", "csv", "-o", tmp_path / "t.csv")
    assert (done.code, done.out) == (EXIT_PASS, "")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "t.csv").read_text("utf-8"))))
    assert [row["der"] for row in rows if row["defense"] == "efrap" and row["model"] == "victim-int8"] == ["98.5"]
    done = run("bench", "table", "smoke", "--results", results, "-f", "csv", "--part", "detection")
    assert "victim-int8,pq-backdoor,int8,weight-residuals,0.5" in done.out


def test_table_options(run: Run, results: Path) -> None:
    command = ["bench", "table", "smoke", "--results", results]
    done = run(*command, "--columns", "defense,asr", "--sort=-asr", "--only", "victim-int8/none/int8/[ne]*")
    assert [line.split(" | ")[0] for line in done.out.splitlines()[2:4]] == ["| nearest", "| efrap"]
    assert EFRAP.split("/")[0] not in run(*command, "--missing", "--only", EFRAP).out
    assert run(*command, "--missing", "--only", EFRAP).out == "Every cell was measured.\n"
    for wrong, message in (
        (["--columns", "azr"], "did you mean 'asr'"), (["--format", "html"], "unknown format"),
        (["--only", "nothing/*"], "unknown cell"), (["--part", "auc"], "no table auc"),
    ):  # fmt: skip
        done = run(*command, *wrong)
        assert done.code == EXIT_USAGE
        assert message in done.error


def test_diff_ends_with_findings_when_figures_differ(run: Run, results: Path, smoke: Suite, tmp_path: Path) -> None:
    assert run("bench", "diff", results, results).code == EXIT_PASS
    worse = [made_row(smoke, EFRAP, cda=70.0, asr=2.0, attack="pq-backdoor", commit="later", key="k")]
    append_rows(results / "smoke.jsonl", worse)
    done = run("bench", "diff", f"{results}@abc", f"{results}@later")
    assert done.code == EXIT_FINDINGS
    assert "**significant**" in done.out
    done = run("bench", "diff", f"{results}@abc", f"{results}@later", "--json", "-o", tmp_path / "d.json")
    assert (done.code, done.out) == (EXIT_FINDINGS, "")
    assert json.loads((tmp_path / "d.json").read_text("utf-8"))["removed"] == [f"smoke:{NEAREST}", f"smoke:{SCORE}"]
    assert run("bench", "diff", results, tmp_path / "none").code == EXIT_USAGE


def test_export_and_merge(run: Run, results: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    done = run("bench", "export", "--results", results, "-o", tmp_path / "rows.parquet")
    assert (done.code, done.out) == (EXIT_PASS, f"3 rows in {tmp_path / 'rows.parquet'}\n")
    assert run("bench", "export", "--results", tmp_path / "none", "-o", tmp_path / "x").code == EXIT_ERROR
    done = run("bench", "merge", results, "--results", tmp_path / "all", "--json")
    assert json.loads(done.out)["added"] == {"smoke": 3}
    assert read_rows(tmp_path / "all" / "smoke.jsonl") == read_rows(results / "smoke.jsonl")
    (results / "smoke.jsonl").write_text("{}\n" + (results / "smoke.jsonl").read_text("utf-8"), "utf-8")
    assert "smoke.jsonl, line 1" in run("bench", "merge", results, "--results", tmp_path / "all").error
