from __future__ import annotations

import json
from pathlib import Path

import pytest
from scipy.stats import false_discovery_control
from tests.bench.made_rows import EFRAP, NEAREST, SCORE, made_row, made_rows, made_suite

from quantinel.bench.diff import Diff, compare, holm, read_side
from quantinel.bench.diff_formats import diff_dict, diff_markdown
from quantinel.bench.row_file import append_rows
from quantinel.bench.rows import ResultRow
from quantinel.errors import InputError, UsageError


def diff(before: list[ResultRow], after: list[ResultRow]) -> Diff:
    sides = ({(row.suite, row.cell): row for row in rows} for rows in (before, after))
    return compare(*sides)


def test_times_and_machines_are_no_difference() -> None:
    suite = made_suite()
    rows = made_rows(suite)
    again = [
        row.model_copy(update={"seconds": 99.0, "hardware": "aarch64", "commit": "x", "created": "2027-01-01T00:00:00"})
        for row in rows
    ]
    found = diff(rows, again)
    assert not found.cells
    assert not found.significant
    assert found.compared == len(rows)


@pytest.mark.parametrize(("after", "significant"), [(90.3, False), (80.0, True)])
def test_a_change_is_significant_when_it_is_hardly_chance(after: float, significant: bool) -> None:
    suite = made_suite()
    found = diff([made_row(suite, EFRAP, cda=90.0)], [made_row(suite, EFRAP, cda=after)])
    (change,) = found.cells[0].figures
    assert (change.figure, change.before, change.after) == ("cda", 90.0, after)
    assert change.before_interval is not None
    assert change.significant is significant is found.significant


def test_many_comparisons_raise_the_bar() -> None:
    suite = made_suite()
    before, after = made_row(suite, EFRAP, cda=90.0), made_row(suite, EFRAP, cda=87.1)  # p = 0.046 alone
    assert diff([before], [after]).significant
    others = [row for row in made_rows(suite) if row.cell != EFRAP]
    assert not diff([before, *others], [after, *others]).significant


def test_holm_is_between_no_correction_and_bonferroni() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
    p_values = [0.001, 0.2, 0.03, 0.9]
    assert all(a >= b for a, b in zip(holm(p_values), false_discovery_control(p_values), strict=True))


def test_states_cells_and_settings_are_compared() -> None:
    suite = made_suite()
    rows = made_rows(suite)
    failed = made_row(suite, EFRAP, status="failed", error="out of memory")
    changed = made_row(
        suite, NEAREST, cda=88.0, asr=99.0, ta=10.0, settings={"attack": {"steps": 5}}, config_sha256="f"
    )
    found = diff(rows[1:], [failed, changed.model_copy(update={"extra": rows[1].extra}), rows[0]])
    by_cell = {cell.cell: cell for cell in found.cells}
    assert found.added == (f"made:{rows[0].cell}",)
    assert found.removed == (f"made:{SCORE}",)
    assert by_cell[EFRAP].status == ("ok", "failed")
    assert by_cell[EFRAP].error == "out of memory"
    assert by_cell[NEAREST].settings == {"attack.steps": (None, 5)}
    assert by_cell[NEAREST].config_changed
    assert not by_cell[NEAREST].figures
    assert found.significant  # a measured cell lost its figures
    repaired = diff([failed], [rows[2]])
    assert repaired.cells[0].status == ("failed", "ok")
    assert not repaired.significant


def test_another_training_is_named_where_both_rows_say_which_they_are_of() -> None:
    suite = made_suite()
    one, two, old = (made_row(suite, NEAREST, weights_sha256=value) for value in ("a" * 64, "b" * 64, None))
    (cell,) = diff([one], [two]).cells
    assert cell.settings == {"weights_sha256": ("a" * 64, "b" * 64)}
    assert not diff([one], [one]).cells
    assert not diff([old], [one]).cells


def test_figures_without_a_test_are_listed() -> None:
    suite = made_suite()
    found = diff([made_row(suite, SCORE, extra={"score": 0.5})], [made_row(suite, SCORE, extra={"score": 0.1})])
    (change,) = found.cells[0].figures
    assert (change.before, change.after, change.p, change.significant) == (0.5, 0.1, None, False)


def test_markdown_and_json_say_the_same() -> None:
    suite = made_suite()
    found = diff([made_row(suite, EFRAP, cda=90.0)], [made_row(suite, EFRAP, cda=80.0)])
    text = diff_markdown(found)
    assert f"| {EFRAP} | cda | 90.00 [88.0, 91.7] | 80.00 [77.4, 82.4] | -10.00 | < 0.0001 **significant** |" in text
    assert "Fisher" in text
    value = json.loads(json.dumps(diff_dict(found), allow_nan=False))
    assert value["significant"] is True
    assert value["cells"][0]["figures"][0]["after"] == 80.0


def test_sides_are_folders_files_and_commits(tmp_path: Path) -> None:
    suite = made_suite()
    old, new = (
        made_row(suite, EFRAP, cda=cda, commit=name, key=name) for cda, name in ((80.0, "aaa1"), (90.0, "bbb2"))
    )
    path = tmp_path / "made.jsonl"
    append_rows(path, [old, new])
    assert read_side(str(tmp_path)) == read_side(str(path)) == read_side(f"{path}@bbb") == {("made", EFRAP): new}
    assert read_side(f"{tmp_path}@aaa1") == {("made", EFRAP): old}
    with pytest.raises(UsageError, match="those of aaa1, bbb2"):
        read_side(f"{path}@ccc")
    with pytest.raises(UsageError, match="does not exist"):
        read_side(str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no result rows"):
        read_side(str(tmp_path / "empty"))
