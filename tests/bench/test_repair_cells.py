"""Repairs and pruning defenses as defenses of cells: what is refused, what is planned, and rows."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.bench.fakes import HEAD, InProcess, write_suite

from quantinel.bench.cells import expand
from quantinel.bench.columns import entries
from quantinel.bench.groups import grouped
from quantinel.bench.plan import Plan
from quantinel.bench.resolved import resolved
from quantinel.bench.runner import Options, run_suite
from quantinel.bench.suite import Suite
from quantinel.errors import UsageError

SETTINGS = """
[defenses.short]
method = "ft"
settings = { epochs = 1.0, batch_size = 8 }
[defenses.through]
method = "ft"
settings = { epochs = 1.0, batch_size = 8, through = "quantized" }
"""


def suite(folder: Path, cells: str, head: str = HEAD) -> Suite:
    return write_suite(folder, f"{head}{SETTINGS}[[cells]]\n{cells}\n")


def plan(folder: Path, cells: str, head: str = HEAD) -> Plan:
    asked = suite(folder, cells, head)
    return Plan(asked, expand(asked), None)


def count(made: Plan) -> dict[str, int]:
    stages = [node.stage for node in made.nodes.values()]
    return {stage: stages.count(stage) for stage in dict.fromkeys(stages)}


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ('schemes = "int8"\ndefenses = "dithered-pruning"', "int8 does not prune; leave it out"),
        ('schemes = "prune-magnitude-0.3"\ndefenses = "through"', "defenses.through trains through.*has none"),
        ('schemes = "prune-magnitude-0.3"\ndefenses = "efrap"', "leaves a float network"),
        ('schemes = "int8"\ndefenses = "ft-sm"', "did you mean 'ft-sam'"),
    ],
)
def test_senseless_cells_are_refused(tmp_path: Path, cells: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        expand(suite(tmp_path, f'models = "v"\n{cells}'))


def test_labels_must_not_shadow_and_options_must_exist(tmp_path: Path) -> None:
    for label, settings, message in (
        ("nad", "", "called like a registered method"),
        ("x", "epoch = 1.0", "did you mean 'epochs'"),
    ):
        text = f'{HEAD}[defenses.{label}]\nmethod = "ft"\nsettings = {{ {settings} }}\n[[cells]]\nmodels = "v"\n'
        with pytest.raises(UsageError, match=message):
            expand(write_suite(tmp_path, text))


def test_a_repair_in_float_is_shared_by_all_grids(tmp_path: Path) -> None:
    made = plan(tmp_path, 'models = "v"\nschemes = ["int8", "int4"]\ndefenses = ["nearest", "short", "through"]')
    assert count(made) == {"evaluate": 7, "compress": 6, "defend": 6, "repair": 3}
    for node in made.nodes.values():
        if node.stage == "repair":
            assert ("scheme" in node.config) == (node.config["settings"].get("through") == "quantized")
            assert set(node.images) == {"train"}
            assert node.config["share"] == 0.05
        if node.stage == "defend":
            assert node.config["defense"] == "nearest"


def test_a_pruned_network_is_repaired_behind_the_pruning(tmp_path: Path) -> None:
    cells = 'models = "v"\nschemes = "prune-magnitude-0.3"\ndefenses = ["none", "short", "dithered-pruning"]'
    made = plan(tmp_path, cells)
    assert count(made) == {"evaluate": 4, "prune": 2, "repair": 1}
    repair = next(node for node in made.nodes.values() if node.stage == "repair")
    assert repair.config["keep_zeros"]
    assert made.nodes[repair.inputs["model"]].stage == "prune"
    assert "defense" not in made.nodes[repair.inputs["model"]].config


def test_the_share_of_images_decides_repairs_only(tmp_path: Path) -> None:
    """Rows that were measured before there were repairs stay those of today's suites."""
    cells = 'models = "v"\nschemes = "int8"\ndefenses = ["nearest", "short"]'
    before, after = (
        suite(tmp_path, cells, head) for head in (HEAD, HEAD.replace("[run]", "[run]\nrepair_share = 0.5"))
    )
    changed = {cell.defense for cell in expand(before) if resolved(before, cell) != resolved(after, cell)}
    assert changed == {"short"}
    assert "repair_share" not in resolved(before, expand(before)[0])["run"]


def test_without_training_images_nothing_is_repaired(tmp_path: Path) -> None:
    bare = HEAD.replace('train = "bundled:calibration"', "", 1)
    with pytest.raises(UsageError, match=r"short trains on images of data\.d, which has no train entry"):
        plan(tmp_path, 'models = "v"\nschemes = "int8"\ndefenses = "short"', bare)


def test_rows_of_a_bundled_victim(tmp_path: Path) -> None:
    asked = suite(
        tmp_path,
        'models = "v"\nschemes = "int8"\ndefenses = ["nearest", "through"]\n'
        '[[cells]]\nmodels = "v"\nschemes = "prune-magnitude-0.2"\ndefenses = ["none", "short", "shifted-pruning"]\n',
    )
    summary = run_suite(asked, expand(asked), Options(tmp_path / "results", tmp_path / "store"), InProcess())
    assert {row.status for row in summary.rows} == {"ok"}
    rows = {(row.scheme, row.defense_variant): row for row in summary.rows}
    repaired = rows["int8", "through"]
    assert (repaired.defense, repaired.backend, repaired.attack) == ("ft", "onnxruntime", "pq-backdoor")
    assert repaired.seconds == repaired.stages["repair"]
    assert repaired.extra["layers"] == repaired.extra["layers_equal"] == 20
    assert (repaired.float_cda, repaired.asr is None) == (rows["float", "none"].cda, False)
    pruned = "prune-magnitude-0.2"
    tuned, shifted = rows[pruned, "short"], rows[pruned, "shifted-pruning"]
    assert (tuned.backend, tuned.extra["pruned_percent"]) == ("float", 20.0)
    assert shifted.extra["pruned_percent"] == 10.0
    lines = entries(asked, grouped(asked, expand(asked), summary.rows))
    rated = {(line.group.cell.scheme, line.group.cell.defense) for line in lines if line.effectiveness is not None}
    assert rated == {("int8", "through"), (pruned, "short"), (pruned, "shifted-pruning")}
