from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest
from tests.bench.fakes import make_row
from tests.bench.made_rows import EFRAP, NEAREST, made_row, made_rows, made_suite

from quantinel.bench import row_file
from quantinel.bench.row_file import RowFile, append_line, append_rows, identity, latest, read_results, read_rows
from quantinel.errors import InputError, OutputError


def test_rows_survive_the_file_and_are_stored_once(tmp_path: Path) -> None:
    path = tmp_path / "results" / "made.jsonl"
    rows = made_rows(made_suite())
    assert append_rows(path, rows[:2]) == rows[:2]
    assert append_rows(path, rows) == rows[2:]
    assert append_rows(path, rows) == []
    assert read_rows(path) == rows


def test_figures_of_scripts_are_lines_of_json(tmp_path: Path) -> None:
    path = tmp_path / "results" / "speed.jsonl"
    lines = [{"name": "naïve", "ratio": 1.5, "config": {"images": 2}}, {"name": "other", "ratio": None}]
    for line in lines:
        append_line(path, line)
    assert [json.loads(text) for text in path.read_text("utf-8").splitlines()] == lines
    with pytest.raises(OutputError):
        append_line(path / "below.jsonl", lines[0])


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


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results" / "fake.jsonl"


def test_time_and_machine_make_no_new_row(path: Path) -> None:
    append_rows(path, [make_row(seconds=1.0)])
    assert append_rows(path, [make_row(seconds=2.0, hardware="other")]) == []
    failed = make_row(status="failed", error="disk")
    assert append_rows(path, [failed, failed]) == [failed]


@pytest.mark.parametrize("kept", [0, 1, 200])
def test_a_torn_last_line_is_left_out_and_cut(path: Path, kept: int) -> None:
    first, second = make_row("a"), make_row("b")
    append_rows(path, [first])
    whole = path.read_bytes()
    path.write_bytes(whole + second.model_dump_json().encode()[:kept])
    assert read_rows(path) == [first]
    assert path.read_bytes()[len(whole) :] == second.model_dump_json().encode()[:kept]
    assert append_rows(path, [second]) == [second]
    assert read_rows(path) == [first, second]
    assert path.read_bytes().startswith(whole)


@pytest.mark.parametrize("size", [1, 65535, 65536, 65537, 200000])
def test_a_torn_first_line_of_any_length_is_cut(path: Path, size: int) -> None:
    path.parent.mkdir()
    path.write_bytes(b"x" * size)
    append_rows(path, [make_row()])
    assert path.read_bytes().startswith(b"{")
    assert len(read_rows(path)) == 1


def test_a_damaged_line_is_named_and_nothing_is_written(path: Path) -> None:
    append_rows(path, [make_row("a"), make_row("b")])
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b'{"suite": 1}\n' + lines[1])
    before = path.read_bytes()
    for use in (lambda: append_rows(path, [make_row("c")]), lambda: read_rows(path), RowFile(path).refresh):
        with pytest.raises(InputError, match=r"fake\.jsonl, line 2 is not a result row"):
            use()
    assert path.read_bytes() == before


def test_what_others_appended_is_seen_and_read_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    real = row_file._row
    monkeypatch.setattr(row_file, "_row", lambda path, number, line: read.append(number) or real(path, number, line))
    mine, other = RowFile(path), RowFile(path)
    mine.refresh()
    assert other.append([make_row("a")])
    assert [row.cell for row in mine.append([make_row("a"), make_row("b")])] == ["b"]
    assert other.append([make_row("b"), make_row("c")])[0].cell == "c"
    read.clear()
    assert mine.append([make_row("c"), make_row("b"), make_row("a")]) == []
    assert read == [2, 3]


def test_a_file_that_was_replaced_or_removed_is_read_anew(path: Path) -> None:
    file = RowFile(path)
    file.append([make_row("a"), make_row("b")])
    (path.parent / "new").write_bytes(path.read_bytes().splitlines(keepends=True)[1])
    os.replace(path.parent / "new", path)
    assert [row.cell for row in file.append([make_row("a"), make_row("b")])] == ["a"]
    path.unlink()
    assert [row.cell for row in file.append([make_row("a")])] == ["a"]


def test_writers_at_once_lose_and_double_nothing(path: Path) -> None:
    def write(start: int) -> None:
        file = RowFile(path)
        for index in range(start, start + 12):
            file.append([make_row(f"c{index}")])

    threads = [threading.Thread(target=write, args=(start,)) for start in (0, 6, 12, 18)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = read_rows(path)
    assert sorted(row.cell for row in rows) == sorted(f"c{index}" for index in range(30))
    assert len({identity(row) for row in rows}) == 30


def test_errors_of_the_disk_are_one_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(row_file.os, "write", full)
    with pytest.raises(OutputError, match="the disk is full"):
        append_rows(path, [make_row()])
    with pytest.raises(InputError, match="cannot be read"):
        read_rows(path.parent)
