"""Thresholds are never fitted on the models that they are judged on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from benchmarks import calibrate_scan
from benchmarks.calibrate_scan import Recipe, calibrate, limit, main, read_split
from hypothesis import given, settings
from hypothesis import strategies as st

from quantinel.audit.combination import PARTS
from quantinel.audit.rules import COMBINED
from quantinel.audit.thresholds import load_thresholds
from quantinel.bench.combined_rows import combined_rows
from quantinel.bench.rows import ResultRow
from quantinel.errors import InputError, UsageError

SPLIT = '[fit]\nclean = ["clean-*/none"]\n[judge]\npruned = ["pruned-*/none"]\n'
RECIPES = [Recipe("clean", "fit", ("clean-*/none",)), Recipe("pruned", "judge", ("pruned-*/none",))]


def row(model: str, score: float, scheme: str = "int8", **changes: Any) -> ResultRow:
    """A detection row."""
    extra = {"score": score, "images": 256, **changes.pop("extra", {})}
    fields: dict[str, Any] = {
        "suite": "made", "cell": f"{model}/{scheme}/{changes.get('attack_variant', 'none')}", "model": model,
        "attack": "none", "attack_variant": "none", "defense": "none", "defense_variant": "none",
        "detector": "re-rounding", "scheme": scheme, "compressor": "static-ptq", "architecture": "net", "data": "d",
        "seed": 0, "backend": "float", "key": f"{model}/{scheme}", "config_sha256": "", "version": "0", "commit": "c",
        "created": "now", "hardware": "", "command": "", "extra": extra,
    }  # fmt: skip
    return ResultRow.model_validate(fields | changes)


def population(fitted: list[float], judged: list[float]) -> list[ResultRow]:
    return [
        *(row(f"clean-{index}", score) for index, score in enumerate(fitted)),
        *(row(f"pruned-{index}", score) for index, score in enumerate(judged)),
    ]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-5, 5), min_size=1, max_size=150),
    st.lists(st.floats(-5, 5), min_size=1, max_size=30),
    st.lists(st.floats(-50, 50), min_size=1, max_size=30),
)
def test_the_limit_knows_nothing_of_the_models_it_is_judged_on(
    fitted: list[float], judged: list[float], others: list[float]
) -> None:
    (entry,) = calibrate(population(fitted, judged), RECIPES, 0.01, "").entries
    (again,) = calibrate(population(fitted, others), RECIPES, 0.01, "").entries
    assert entry.threshold == again.threshold == limit(fitted, "score", 0.01)
    assert set(entry.fitted_on).isdisjoint(entry.judged_on)
    assert entry.fitted_models == len(fitted)
    assert entry.false_positives.n == len(judged)
    assert entry.false_positives.hits == sum(score > entry.threshold for score in judged)


def test_the_limit_is_a_quantile_where_there_are_enough_models() -> None:
    assert limit([float(value) for value in range(199)], "score", 0.01) == 197.0  # 2 of 200
    assert limit([0.0, 1.0, 2.0], "score", 0.01) == 3.0  # the largest and a margin
    assert limit([0.2, 0.5], "p_value", 0.01) == 0.01
    assert limit([0.004, 0.5], "p_value", 0.01) == 0.002


def test_one_model_in_both_halves_is_refused() -> None:
    rows = [*population([0.1], [0.2]), row("pruned-copy", 0.1, key="clean-0/int8")]
    with pytest.raises(UsageError, match="the same model is fitted and judged: clean-0/int8/none, pruned-copy"):
        calibrate(rows, RECIPES, 0.01, "")


def test_harmless_models_without_a_recipe_are_refused() -> None:
    with pytest.raises(UsageError, match="qat-0/none belongs to none of the recipes"):
        calibrate([*population([0.1], [0.2]), row("qat-0", 0.9)], RECIPES, 0.01, "")


def test_only_rows_that_a_scan_would_repeat_take_part() -> None:
    rows = [
        *population([0.1, 0.2], [0.2]),
        row("victim", 9.0, attack="pq-backdoor", attack_variant="pq"),
        row("clean-tuned", 9.0, settings={"detector": {"copies": 3}}),
        row("clean-failed", 9.0, status="failed"),
        row("clean-pruned", 9.0, scheme="prune-magnitude-0.5"),
        row("clean-accuracy", 9.0, detector=None),
        row("clean-4", 9.0, scheme="int4"),
    ]
    (entry,) = calibrate(rows, RECIPES, 0.01, "").entries
    assert (entry.weight_bits, entry.fitted_models, entry.images) == ((8, 8), 2, 256)
    assert entry.threshold < 1.0
    assert {name: str(rate) for name, rate in calibrate_scan.caught(rows, entry).items()} == {
        "pq": "100.00 % [20.65, 100.00] (n = 1)"
    }


def p_values(detector: str, fitted: float, judged: float) -> list[ResultRow]:
    """One fitted and one judged model that a detector gives these p-values."""
    return [
        row(model, 1.0, detector=detector, cell=f"{model}/{detector}", key=f"{model}/{detector}", extra={"p_value": p})
        for model, p in (("clean-0", fitted), ("pruned-0", judged))
    ]


def test_p_values_are_used_where_all_rows_have_them() -> None:
    (entry,) = calibrate(p_values("re-rounding", 0.3, 0.04), RECIPES, 0.05, "").entries
    assert (entry.statistic, entry.threshold, entry.false_positives.hits) == ("p_value", 0.05, 1)


def test_detectors_of_pruning_have_one_threshold_for_all_grids() -> None:
    """Regression: theirs was of the bits of the rows, so a verdict hung on the first grid of a scan."""
    rows = p_values("pruning-divergence", 0.3, 0.5)
    others = [
        item.model_copy(update={"scheme": "int4", "cell": f"{item.cell}/int4", "key": f"{item.key}/int4"})
        for item in rows
    ]
    (entry,) = calibrate([*rows, *others], RECIPES, 0.01, "").entries
    assert (entry.weight_bits, entry.threshold) == (None, 0.01)
    assert (entry.fitted_models, entry.false_positives.n) == (1, 1)  # a model on two grids is one model


def test_what_is_no_p_value_gets_no_threshold(capsys: pytest.CaptureFixture[str]) -> None:
    assert not calibrate(p_values("re-rounding", 0.3, 0.001), RECIPES, 0.01, "").entries
    assert "the smallest p-value of 2 harmless models is 0.001, not written" in capsys.readouterr().err


def test_a_verdict_as_a_whole_keeps_to_the_rate() -> None:
    detectors = (*PARTS, "edge-atoms")
    rows = [made for name in detectors for made in p_values(name, 0.3, 0.5)]
    found = {entry.detector: entry for entry in calibrate(rows, RECIPES, 0.01, "").entries}
    assert set(found) == {*detectors, COMBINED}
    assert found[COMBINED].threshold == 0.005
    assert all(found[name].threshold == 0.00125 for name in detectors)
    pruned = calibrate([*rows, *p_values("pruning-divergence", 0.3, 0.5)], RECIPES, 0.01, "").entries
    assert {entry.detector: entry.threshold for entry in pruned} == {
        "pruning-divergence": 0.01, **{name: entry.threshold for name, entry in found.items()},
    }  # fmt: skip


def test_combined_rows_are_of_models_that_all_parts_scored() -> None:
    rows = [made for name in PARTS for made in p_values(name, 0.1, 0.5)]
    found = combined_rows(rows[:-1])
    assert [(made.model, made.detector, made.extra["images"]) for made in found] == [("clean-0", COMBINED, 256)]
    assert found[0].extra["p_value"] == pytest.approx(0.0318, abs=1e-4)
    assert {made.model for made in combined_rows(rows)} == {"clean-0", "pruned-0"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (SPLIT.replace("pruned", "clean"), "clean is both fitted and judged"),
        ('[fit]\nclean = ["*"]\n', "under .judge."),
        ("[fit", "is no split"),
    ],
)
def test_bad_splits_are_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "split.toml"
    path.write_text(text, "utf-8")
    with pytest.raises(InputError, match=words):
        read_split(path)


def made_suite(folder: Path) -> list[str]:
    """A split and a suite's rows in ``folder``, and the script's arguments that read them and write ``t.json``."""
    (folder / "split.toml").write_text(SPLIT, "utf-8")
    lines = [item.model_dump_json() + "\n" for item in population([0.1, 0.3], [0.2, 0.9])]
    (folder / "made.jsonl").write_text("".join(lines), "utf-8")
    return ["made", "--split", str(folder / "split.toml"), "--results", str(folder), "-o", str(folder / "t.json")]


def test_the_script_writes_a_file_that_a_scan_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*made_suite(tmp_path), "--scores", "--most", "100"]
    assert main(command) == 0
    found = load_thresholds(tmp_path / "t.json")
    assert found.suite == "made"
    assert (
        found.command
        == "python benchmarks/calibrate_scan.py made --split split.toml --alpha 0.01 --most 100.0 --scores"
    )
    assert found.entries[0].threshold == pytest.approx(0.4)
    assert "false positives 50.00 %" in capsys.readouterr().out
    assert main([*command[:2], "missing.toml", *command[3:]]) == 2
    assert "is no split" in capsys.readouterr().err


def test_thresholds_that_did_not_hold_and_scores_without_p_values_are_not_written(tmp_path: Path) -> None:
    command = made_suite(tmp_path)
    for options in (["--scores"], ["--most", "100"]):
        assert main([*command, *options]) == 0
        assert load_thresholds(tmp_path / "t.json").entries == []


def test_the_split_of_the_scan_suite_is_valid() -> None:
    recipes = read_split(calibrate_scan.ROOT / "benchmarks" / "scan_split.toml")
    patterns = [pattern for recipe in recipes for pattern in recipe.patterns]
    assert len(patterns) == len(set(patterns))
    assert {recipe.half for recipe in recipes} == {"fit", "judge"}
