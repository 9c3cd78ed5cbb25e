from __future__ import annotations

from typing import Any

import pytest
from tests.bench.made_rows import CLEAN_SCORE, EFRAP, FLOAT, NEAREST, SCORE, SUITE, made_row, made_rows, made_suite

from quantinel.audit.combination import PARTS
from quantinel.audit.rules import COMBINED
from quantinel.bench.cells import expand
from quantinel.bench.combined_rows import combined_rows
from quantinel.bench.effectiveness import defense_effectiveness
from quantinel.bench.formats import Figure, Table, Value
from quantinel.bench.rows import ResultRow
from quantinel.bench.suite import Suite
from quantinel.bench.tables import TableOptions, suite_tables
from quantinel.errors import UsageError


def tables(suite: Suite, rows: list[ResultRow], **options: Any) -> dict[str, Table]:
    return {table.part: table for table in suite_tables(suite, expand(suite), rows, TableOptions(**options))}


def lines(table: Table) -> list[dict[str, Value]]:
    names = [column.name for column in table.columns]
    return [dict(zip(names, line.values, strict=True)) for line in table.lines]


def line(table: Table, **wanted: str) -> dict[str, Value]:
    found = [row for row in lines(table) if all(row[name] == value for name, value in wanted.items())]
    assert len(found) == 1
    return found[0]


def test_one_seed_stands_with_its_interval_and_the_paper_beside_it() -> None:
    suite = made_suite()
    efrap = line(tables(suite, made_rows(suite))["figures"], model="victim", defense="efrap")
    cda = efrap["cda"]
    assert isinstance(cda, Figure)
    assert cda.spread == "interval95"
    assert cda.low is not None
    assert cda.low < 90.5 < (cda.high or 0)
    assert efrap["paper-cda"] == Figure(90.0)
    assert efrap["paper-asr"] == Figure(2.0)
    assert efrap["attack"] == "pq-backdoor"
    assert efrap["flips"] == Figure(50.5)
    assert efrap["seconds"] == Figure(5.0)


def test_every_table_says_what_recomputes_it_and_what_made_it() -> None:
    suite = made_suite()
    for table in tables(suite, made_rows(suite)).values():
        assert "`quantinel bench run made`" in table.below[-2]
        assert "quantinel 0.1.0, commit abc1234, torch 2.13.0" in table.below[-1]
        assert "trained on" not in table.below[-1]
    trained = [row.model_copy(update={"devices": {"train": "cpu", "attack": "a GPU"}}) for row in made_rows(suite)]
    assert "torch 2.13.0, trained on a GPU, cpu." in tables(suite, trained)["figures"].below[-1]
    chosen = tables(suite, made_rows(suite), only=("victim/*",))["figures"]
    assert "--only 'victim/*'" in chosen.below[-2]


def test_effectiveness_is_measured_against_nearest_rounding() -> None:
    suite = made_suite()
    rows = made_rows(suite)
    found = tables(suite, rows)["figures"]
    assert line(found, model="victim", defense="efrap")["der"] == Figure((97.5 - 0 + 100) / 2)
    assert line(found, model="victim", defense="nearest")["der"] is None
    alone = tables(suite, rows, only=("*/efrap/*",))["figures"]  # nearest is compared with, though not shown
    assert line(alone, model="victim")["der"] == Figure(98.75)


def test_nearest_rounding_with_options_is_a_defense_and_nothing_is_measured_against_it() -> None:
    corrected = {"nearest-bias": {"method": "nearest", "settings": {"bias_correction": True}}}
    cells = [{"models": "victim", "schemes": "int8", "defenses": ["nearest", "efrap", "nearest-bias"]}]
    suite = made_suite(defenses=corrected, cells=cells, published=[])
    rows = [
        made_row(suite, NEAREST, cda=88.0, asr=99.0),
        made_row(suite, EFRAP, cda=90.5, asr=1.5),
        made_row(suite, "victim/none/int8/nearest-bias/s0", cda=89.0, asr=50.0),
    ]
    found = tables(suite, rows)["figures"]
    assert line(found, model="victim", defense="nearest")["der"] is None
    assert line(found, model="victim", defense="efrap")["der"] == Figure(98.75)
    assert line(found, model="victim", defense="nearest-bias")["der"] == Figure(74.5)


def test_effectiveness_counts_what_the_model_loses_and_needs_an_attack() -> None:
    suite = made_suite()
    before, after = made_row(suite, NEAREST, cda=90.0, asr=99.12), made_row(suite, EFRAP, cda=90.5, asr=1.64)
    assert defense_effectiveness(before, after) == pytest.approx(98.74)  # the published figure of that fall
    assert defense_effectiveness(before, after.model_copy(update={"cda": 80.0})) == pytest.approx(93.74)
    assert defense_effectiveness(after, before) == pytest.approx(49.75)
    for change in ({"attack": "none"}, {"asr": None}, {"status": "gate_failed"}):
        assert defense_effectiveness(before, after.model_copy(update=change)) is None


@pytest.mark.parametrize(("cda", "asr", "standing"), [(90.9, 2.9, "reproduced"), (91.1, 2.0, "differs")])
def test_standing_follows_the_tolerance_of_the_suite(cda: float, asr: float, standing: str) -> None:
    suite = made_suite()
    found = tables(suite, [made_row(suite, EFRAP, cda=cda, asr=asr)])["figures"]
    assert line(found, model="victim", defense="efrap")["standing"] == standing
    assert line(found, model="victim", defense="nearest")["standing"] == "-"


def test_cells_without_a_row_are_shown_as_not_run() -> None:
    suite = made_suite()
    found = tables(suite, [])
    assert {row["status"] for row in lines(found["figures"]) + lines(found["detection"])} == {"not run"}
    assert len(found["figures"].lines) == 6
    assert line(found["figures"], model="victim", defense="efrap")["standing"] == "not run"
    assert found["figures"].below[-1] == "There are no rows yet."


def test_failures_stand_in_footnotes_without_folders_of_the_machine() -> None:
    suite = made_suite()
    failed = made_row(suite, EFRAP, status="failed", error="no space in /home/someone/store/x.bin; free some")
    gate = made_row(suite, NEAREST, cda=50.0, asr=40.0, status="gate_failed", error="too weak")
    found = tables(suite, [failed, gate])["figures"]
    efrap, nearest = (line(found, model="victim", defense=name) for name in ("efrap", "nearest"))
    assert (efrap["status"], efrap["standing"], efrap["cda"]) == ("failed", "failed", None)
    assert nearest["status"] == "no victim"
    assert str(nearest["cda"]).startswith("50.00")
    notes = "\n".join(found.notes)
    assert "failed: no space in x.bin; free some" in notes
    assert "no victim; figures of the attempt: too weak" in notes


@pytest.fixture
def seeds() -> Suite:
    return made_suite(run={"seeds": [0, 1, 2]})


def test_seeds_are_averaged_with_their_range(seeds: Suite) -> None:
    rows = [
        made_row(seeds, f"victim/none/int8/{defense}/s{seed}", cda=cda, asr=asr)
        for defense, asr in (("nearest", 99.0), ("efrap", 1.0))
        for seed, cda in enumerate((88.0, 89.0, 93.0))
    ]
    efrap = line(tables(seeds, rows)["figures"], model="victim", defense="efrap")
    assert efrap["cda"] == Figure(90.0, 88.0, 93.0, "range")
    assert efrap["der"] == Figure(99.0, 99.0, 99.0, "range")
    assert efrap["standing"] == "reproduced"  # the mean, though seed 2 alone would not be
    assert efrap["seeds"] == 3


def test_a_seed_that_failed_is_named_and_not_averaged(seeds: Suite) -> None:
    rows = [
        made_row(seeds, "victim/none/int8/efrap/s0", cda=90.0, asr=2.0),
        made_row(seeds, "victim/none/int8/efrap/s1", cda=10.0, asr=10.0, status="gate_failed", error="too weak"),
    ]
    found = tables(seeds, rows)["figures"]
    efrap = line(found, model="victim", defense="efrap")
    assert efrap["status"] == "1 of 3 seeds"
    assert isinstance(efrap["cda"], Figure)
    assert efrap["cda"].value == 90.0
    assert "seed 1: the attack made no victim (not in the mean): too weak" in found.notes
    assert "seed 2: not run" in found.notes


def test_rows_of_other_settings_are_marked_and_yield_to_present_ones() -> None:
    suite = made_suite()
    old = made_row(suite, EFRAP, cda=80.0, asr=2.0, config_sha256="0" * 64)
    assert any("other settings" in note for note in tables(suite, [old])["figures"].notes)
    now = made_row(suite, EFRAP, cda=90.0, asr=2.0)
    found = tables(suite, [now, old])["figures"]
    assert not any("other settings" in note for note in found.notes)
    assert str(line(found, model="victim", defense="efrap")["cda"]).startswith("90.00")


def test_columns_order_choice_and_what_is_missing() -> None:
    suite = made_suite()
    rows = made_rows(suite)
    found = tables(suite, rows, columns=("defense", "asr"), sort=("-asr",))["figures"]
    assert [column.name for column in found.columns] == ["defense", "asr"]
    assert [row["defense"] for row in lines(found)][:3] == ["nearest", "none", "efrap"]
    missing = tables(suite, rows, missing=True)
    assert {row["model"] for part in missing.values() for row in lines(part)} == {"clean"}
    with pytest.raises(UsageError, match="did you mean 'asr'"):
        tables(suite, rows, columns=("azr",))


def test_detectors_have_a_table_of_scores_and_an_area_where_both_kinds_were_scored() -> None:
    suite = made_suite()
    found = tables(suite, made_rows(suite))
    assert "auc" not in found  # nothing to tell the victim from
    score = line(found["detection"], model="victim")
    assert score["score"] == Figure(0.5, digits=3)
    assert score["statistics"] == "edge_share 0.6"
    clean = made_row(suite, CLEAN_SCORE, extra={"score": 0.1})
    (area,) = lines(tables(suite, [*made_rows(suite), clean])["auc"])
    assert isinstance(area["auc"], Figure)
    assert area["auc"].value == 1.0
    assert (area["detector"], area["scheme"], area["attacked"], area["clean"]) == ("weight-residuals", "int8", 1, 1)


def test_what_a_verdict_combines_has_an_area_of_its_own() -> None:
    suite = made_suite(
        cells=[{"models": ["victim", "clean"], "schemes": "int8", "detectors": list(PARTS)}], published=[]
    )
    rows = [
        made_row(suite, f"{model}/none/int8/{name}/s0", extra={"score": 1.0, "p_value": p, "images": 256})
        for model, p in (("victim", 0.01), ("clean", 0.5)) for name in PARTS
    ]  # fmt: skip
    areas = lines(tables(suite, rows)["auc"])
    assert [area["detector"] for area in areas] == [*PARTS, COMBINED]
    assert [area["auc"].value for area in areas if isinstance(area["auc"], Figure)] == [0.5, 0.5, 0.5, 1.0]
    assert [area["detector"] for area in lines(tables(suite, rows[:-1])["auc"])] == list(PARTS[:2])


def test_a_detector_with_options_is_a_line_of_its_own() -> None:
    """Regression: variants were pooled into one area, and combined with the other parts of a verdict."""
    few = {"few-copies": {"method": PARTS[0], "settings": {"copies": 5}}}
    suite = made_suite(
        detectors=few, published=[],
        cells=[{"models": ["victim", "clean"], "schemes": "int8", "detectors": [*PARTS, "few-copies"]}],
    )  # fmt: skip
    settings = {"detector": PARTS[0], "settings": {"detector": {"copies": 5}}}
    rows = [
        made_row(
            suite, f"{model}/none/int8/{name}/s0", **(settings if name in few else {}),
            extra={"score": score, "p_value": 0.5 if name in few else p, "images": 256},
        )
        for model, p, score in (("victim", 0.01, 2.0), ("clean", 0.5, 1.0)) for name in (*PARTS, "few-copies")
    ]  # fmt: skip
    rows[3] = rows[3].model_copy(update={"extra": {"score": 0.0, "p_value": 1.0, "images": 256}})
    areas = {area["detector"]: area["auc"] for area in lines(tables(suite, rows)["auc"])}
    values = {name: area.value for name, area in areas.items() if isinstance(area, Figure)}
    assert values == {**dict.fromkeys(PARTS, 1.0), "few-copies": 0.0, COMBINED: 1.0}
    assert {row.extra["p_value"] for row in combined_rows(rows)} == {row.extra["p_value"] for row in combined_rows(
        row for row in rows if "detector" not in row.settings
    )}  # fmt: skip
    assert not combined_rows(row for row in rows if row.detector != PARTS[0] or row.settings)


def test_options_and_calibration_images_of_a_detector_are_not_put_together() -> None:
    suite = made_suite(
        data={**SUITE["data"], "other": {"test": "bundled:test", "train": "bundled:calibration"}},
        detectors={"narrow": {"method": "edge-atoms", "settings": {"widest_margin": 0.01}}},
        cells=[{"models": ["victim", "clean"], "schemes": "int8", "calibration": ["cifar10", "other"],
                "detectors": ["edge-atoms", "narrow"]}],
        published=[],
    )  # fmt: skip
    scores = {"edge-atoms": (1.0, 0.0), "narrow": (0.0, 1.0)}
    rows = [
        made_row(suite, f"{model}/none/{scheme}/{label}/s0", extra={"score": score}, detector="edge-atoms")
        for label, both in scores.items()
        for model, score in zip(("victim", "clean"), both, strict=True)
        for scheme in ("int8", "int8@other")
    ]
    areas = lines(tables(suite, rows)["auc"])
    found = {(area["detector"], area["scheme"]): (area["auc"], area["attacked"], area["clean"]) for area in areas}
    assert found.keys() == {(label, scheme) for label in scores for scheme in ("int8", "int8@other")}
    for (label, _), (figure, *counts) in found.items():
        assert isinstance(figure, Figure)
        assert (figure.value, *counts) == (scores[str(label)][0], 1, 1)


def test_attempts_and_awake_controls_are_no_scores() -> None:
    suite = made_suite()
    clean = made_row(suite, CLEAN_SCORE, extra={"score": 0.1})
    for change in ({"status": "gate_failed", "error": "weak"}, {"attack": "badnets"}):
        assert "auc" not in tables(suite, [clean, made_row(suite, SCORE, extra={"score": 0.5}, **change)])


def test_foreign_calibration_gets_a_column_and_its_own_nearest() -> None:
    data = {**SUITE["data"], "other": {"test": "bundled:test"}}
    cells = [{"models": "victim", "schemes": "int8", "defenses": ["nearest", "efrap"], "calibration": "other"}]
    suite = made_suite(data=data, cells=[*SUITE["cells"], *cells])
    rows = [*made_rows(suite), made_row(suite, "victim/none/int8@other/efrap/s0", cda=90.0, asr=2.0)]
    found = tables(suite, rows)["figures"]
    assert line(found, model="victim", defense="efrap", calibration="other")["der"] is None
    assert line(found, model="victim", defense="efrap", calibration="cifar10")["der"] is not None


def test_float_models_come_first() -> None:
    suite = made_suite()
    first = lines(tables(suite, made_rows(suite))["figures"])[0]
    assert (first["model"], first["scheme"], first["defense"]) == tuple(FLOAT.split("/")[i] for i in (0, 2, 3))


def test_a_suite_is_named_as_the_user_named_it() -> None:
    suite = made_suite(given="my folder/made.toml")
    found = tables(suite, made_rows(suite))["figures"]
    assert "`quantinel bench run 'my folder/made.toml'`" in found.below[-2]
