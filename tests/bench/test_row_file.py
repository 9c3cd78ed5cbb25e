from __future__ import annotations

from pathlib import Path

import pytest
from tests.bench.made_rows import EFRAP, NEAREST, made_row, made_rows, made_suite

from quantinel.bench.row_file import append_rows, latest, read_results, read_rows
from quantinel.errors import InputError


def test_rows_survive_the_file_and_are_stored_once(tmp_path: Path) -> None:
    path = tmp_path / "results" / "made.jsonl"
    rows = made_rows(made_suite())
    assert append_rows(path, rows[:2]) == rows[:2]
    assert append_rows(path, rows) == rows[2:]
    assert append_rows(path, rows) == []
    assert read_rows(path) == rows


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "made.jsonl"
    append_rows(path, made_rows(made_suite())[:1])
    path.write_text(path.read_text("utf-8") + '{"suite": 1}\n', "utf-8")
    with pytest.raises(InputError, match="line 2"):
        read_rows(path)


def test_an_incomplete_last_line_is_left_out_and_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "made.jsonl"
    rows = made_rows(made_suite())
    append_rows(path, rows[:1])
    with path.open("a", encoding="utf-8") as stream:
        stream.write('{"suite": "made", "cell"')
    assert read_rows(path) == rows[:1]
    append_rows(path, rows[1:2])
    assert read_rows(path) == rows[:2]


def test_the_newest_row_of_a_cell_counts() -> None:
    suite = made_suite()
    rows = [made_row(suite, NEAREST, cda=80.0), made_row(suite, EFRAP, cda=1.0), made_row(suite, NEAREST, cda=85.0)]
    assert [row.cda for row in latest(rows).values()] == [85.0, 1.0]


def test_files_that_hold_no_rows_are_told_from_damaged_ones(tmp_path: Path) -> None:
    rows = made_rows(made_suite())
    append_rows(tmp_path / "made.jsonl", rows)
    (tmp_path / "speed.jsonl").write_text('{"suite": "speed", "ratio": 1.0}\n', "utf-8")
    assert read_results(tmp_path) == {"made": rows}
    text = (tmp_path / "made.jsonl").read_text("utf-8")
    (tmp_path / "made.jsonl").write_text("damaged\n" + text, "utf-8")
    with pytest.raises(InputError, match=r"made\.jsonl, line 1"):
        read_results(tmp_path)


def test_figures_become_the_newest_again_after_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "made.jsonl"
    good = made_rows(made_suite())[0]
    failed = good.model_copy(update={"status": "failed", "error": "out of memory"})
    for row in (good, good, failed, failed, good, good):
        append_rows(path, [row])
    assert [row.status for row in read_rows(path)] == ["ok", "failed", "ok"]
