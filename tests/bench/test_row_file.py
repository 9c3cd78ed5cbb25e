from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from tests.bench.fakes import make_row

from quantinel.bench import row_file
from quantinel.bench.row_file import RowFile, append_rows, identity, latest, read_results, read_rows
from quantinel.errors import InputError, OutputError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results" / "fake.jsonl"


def test_rows_come_back_in_order_and_once(path: Path) -> None:
    first, second, third = (make_row(f"m/none/int8/d{index}/s0") for index in range(3))
    assert append_rows(path, [first, second, first]) == [first, second]
    assert append_rows(path, [second, third]) == [third]
    assert append_rows(path, []) == []
    assert read_rows(path) == [first, second, third]
    again = make_row(first.cell, key="other code")
    assert append_rows(path, [again]) == [again]
    assert latest(read_rows(path))[first.cell] == again
    assert list(latest(read_rows(path))) == [first.cell, second.cell, third.cell]


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
    assert read == [3]


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


def test_results_are_told_from_other_files(path: Path) -> None:
    append_rows(path, [make_row()])
    (path.parent / "speed.jsonl").write_text('{"model": "x"}\n')
    assert list(read_results(path.parent)) == ["fake"]
    with pytest.raises(InputError, match="run the suite first"):
        read_results(path.parent, ["absent"])
