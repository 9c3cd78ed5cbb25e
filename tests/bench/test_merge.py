from __future__ import annotations

from pathlib import Path

import pytest
from tests.bench.made_rows import EFRAP, made_row, made_rows, made_suite

from quantinel.bench.merge import merge_results
from quantinel.bench.row_file import append_rows, latest, read_rows
from quantinel.errors import InputError


def test_shards_become_one_file_with_every_row_once(tmp_path: Path) -> None:
    rows = made_rows(made_suite())
    append_rows(tmp_path / "one" / "made.jsonl", rows[:3])
    append_rows(tmp_path / "shard2.jsonl", rows[2:])
    sources = [tmp_path / "one", tmp_path / "shard2.jsonl"]
    merged = merge_results(sources, tmp_path / "all")
    assert read_rows(tmp_path / "all" / "made.jsonl") == rows
    assert (merged.added, merged.known) == ({"made": 4}, 1)
    before = (tmp_path / "all" / "made.jsonl").read_bytes()
    assert merge_results(sources, tmp_path / "all").added == {"made": 0}
    assert (tmp_path / "all" / "made.jsonl").read_bytes() == before


def test_the_row_that_was_made_last_is_the_newest(tmp_path: Path) -> None:
    suite = made_suite()
    here = made_row(suite, EFRAP, cda=90.0, key="here", created="2026-01-02T00:00:00+00:00")
    older = made_row(suite, EFRAP, cda=80.0, key="older", created="2026-01-01T00:00:00+00:00")
    newer = made_row(suite, EFRAP, cda=95.0, key="newer", created="2026-01-03T00:00:00+00:00")
    path = tmp_path / "all" / "made.jsonl"
    append_rows(path, [here])
    for name, row, newest in (("a", older, here), ("b", newer, newer)):
        append_rows(tmp_path / name / "made.jsonl", [row])
        merge_results([tmp_path / name], tmp_path / "all")
        assert latest(read_rows(path)) == {EFRAP: newest}
    assert len(read_rows(path)) == 3


def test_a_foreign_line_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    rows = made_rows(made_suite())
    append_rows(tmp_path / "good" / "made.jsonl", rows[:1])
    append_rows(tmp_path / "bad" / "made.jsonl", rows[1:3])
    with (tmp_path / "bad" / "made.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"suite": "made", "ratio": 1}\n')
    with pytest.raises(InputError, match=r"bad/made\.jsonl, line 3"):
        merge_results([tmp_path / "good", tmp_path / "bad"], tmp_path / "all")
    assert not (tmp_path / "all").exists()


def test_a_torn_last_line_and_other_files_are_left_out_and_named(tmp_path: Path) -> None:
    rows = made_rows(made_suite())
    path = tmp_path / "cut" / "made.jsonl"
    append_rows(path, rows[:2])
    path.write_bytes(path.read_bytes()[:-40])
    (tmp_path / "cut" / "speed.jsonl").write_text('{"ratio": 1}\n', "utf-8")
    merged = merge_results([tmp_path / "cut"], tmp_path / "all")
    assert merged.torn == [path]
    assert merged.ignored == [tmp_path / "cut" / "speed.jsonl"]
    assert read_rows(tmp_path / "all" / "made.jsonl") == rows[:1]


def test_sources_without_rows_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for source in (tmp_path / "empty", tmp_path / "none.jsonl"):
        with pytest.raises(InputError, match=source.name):
            merge_results([source], tmp_path / "all")
