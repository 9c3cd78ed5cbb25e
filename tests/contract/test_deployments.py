"""What every kind of compressor that a suite can name must keep, on a bundled victim and a few images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.bench.fakes import InProcess

from quantinel.bench.cells import expand
from quantinel.bench.deployment import parse_deployment
from quantinel.bench.plan import Plan
from quantinel.bench.runner import Options, run_suite
from quantinel.bench.stages.job import traced
from quantinel.bench.suite import Suite
from quantinel.bench.suite_files import load_suite
from quantinel.errors import UnsupportedError, UsageError
from quantinel.model.zoo import build

COMPRESSORS = {
    "int8": "static-ptq",
    "int4-dynamic": "dynamic-ptq",
    "int4-weight-only": "weight-only-ptq",
    "qat-0.1+int4": "qat+static-ptq",
    "unfolded-bn+int4-per-tensor": "unfolded-bn+static-ptq",
    "unfolded-bn+int4-per-tensor-weight-only": "unfolded-bn+weight-only-ptq",
    "prune-l1-filters-0.1": "l1-filter-pruning",
    "prune-magnitude-0.2": "magnitude-pruning",
    "prune-magnitude-0.2+int8": "magnitude-pruning+static-ptq",
}

SUITE = """
title = "Deployments"
[run]
limit = 20
calibration_images = 16
backend = "simulated"
[data.cifar10]
test = "bundled:test"
calibration = "bundled:calibration"
train = "bundled:test"
train_limit = 200
[models.victim]
victim = "bundled:victim_int8"
data = "cifar10"
[[cells]]
models = "victim"
schemes = [{rounded}]
defenses = "nearest"
[[cells]]
models = "victim"
schemes = [{float}]
defenses = "none"
"""


def suite(folder: Path, names: list[str]) -> Suite:
    floating = [name for name in names if parse_deployment(name).grid is None]
    rounded = [name for name in names if name not in floating]
    quoted = {"rounded": rounded, "float": floating}
    path = folder / "deployments.toml"
    path.write_text(SUITE.format(**{key: ", ".join(f'"{n}"' for n in value) for key, value in quoted.items()}), "utf-8")
    return load_suite(path)


@pytest.mark.parametrize(("name", "compressor"), COMPRESSORS.items())
def test_its_name_reads_back(name: str, compressor: str) -> None:
    deployment = parse_deployment(name)
    assert deployment.name == name
    assert deployment.compressor == compressor
    assert parse_deployment(deployment.name) == deployment


def test_each_makes_a_row_beside_the_same_float_model(tmp_path: Path) -> None:
    asked = suite(tmp_path, list(COMPRESSORS))
    rows = run_suite(asked, expand(asked), Options(tmp_path / "results", tmp_path / "store"), InProcess()).rows
    assert [row.error for row in rows] == [None] * len(rows)
    found = {row.scheme: row for row in rows}
    floating = found.pop("float")
    assert {scheme: row.compressor for scheme, row in found.items()} == COMPRESSORS
    for row in found.values():
        assert (row.float_cda, row.float_asr) == (floating.cda, floating.asr)
        assert row.n_clean == 20
        assert ("qat" in row.stages) == row.scheme.startswith("qat")


@pytest.mark.parametrize("name", ["qat", "qat+", "qat-0+int8", "qat-x+int8", "qat+prune-magnitude-0.5", "QAT8+int8"])
def test_trainings_that_mean_nothing(name: str) -> None:
    with pytest.raises(UsageError):
        parse_deployment(name)


def test_training_for_a_grid_is_planned_once_for_all_defenses(tmp_path: Path) -> None:
    text = SUITE.format(rounded='"qat+int8", "qat+int4"', float='"prune-magnitude-0.2"')
    path = tmp_path / "trained.toml"
    path.write_text(text.replace('"nearest"', '["nearest", "efrap"]'), "utf-8")
    asked = load_suite(path)
    nodes = [node for node in Plan(asked, expand(asked), None).nodes.values() if node.stage == "qat"]
    assert [node.config["scheme"] for node in nodes] == ["qat+int8", "qat+int4"]
    assert all(set(node.images) == {"train"} for node in nodes)


def test_detectors_look_at_the_model_as_it_came(tmp_path: Path) -> None:
    path = tmp_path / "scan.toml"
    text = SUITE.format(rounded='"qat+int8"', float='"prune-magnitude-0.2"')
    path.write_text(text.replace('defenses = "nearest"', 'detectors = "weight-residuals"'), "utf-8")
    with pytest.raises(UsageError, match=r"as it came.*leave it out"):
        expand(load_suite(path))


@pytest.mark.parametrize(
    "name",
    ["unfolded-bn", "unfolded-bn+", "unfolded-bn+float", "unfolded-bn+prune-magnitude-0.5", "unfolded-bn+qat+int8",
     "prune-magnitude-0.5+unfolded-bn+int8", "qat+unfolded-bn+int8", "unfolded-bn+unfolded-bn+int8",
     "int8+unfolded-bn"],
)  # fmt: skip
def test_unfolded_batch_norms_that_mean_nothing(name: str) -> None:
    with pytest.raises(UsageError):
        parse_deployment(name)


def test_batch_norm_stays_unfolded_from_calibration_to_measurement(tmp_path: Path) -> None:
    """Only stages that a cell with the prefix needs for itself name the option; the float model is the same one."""
    asked = suite(tmp_path, ["int4-per-tensor", "unfolded-bn+int4-per-tensor", "prune-magnitude-0.2"])
    plan = Plan(asked, expand(asked), None)
    works = {work.cell.scheme: work for work in plan.work}
    option = {
        name: {plan.nodes[node].stage: plan.nodes[node].config.get("fold_batch_norm") for node in work.chain}
        for name, work in works.items()
    }
    stages = ("compress", "defend", "evaluate")
    assert option["int4-per-tensor"] == dict.fromkeys(stages)
    assert option["unfolded-bn+int4-per-tensor"] == dict.fromkeys(stages, False)
    assert works["unfolded-bn+int4-per-tensor"].floating == works["float"].result
    assert all("fold_batch_norm" not in node.config for node in plan.nodes.values() if "unfolded" not in node.label)


def test_a_method_that_needs_batch_norm_takes_one_that_stays(tmp_path: Path) -> None:
    path = tmp_path / "unfolded.toml"
    text = SUITE.format(rounded='"unfolded-bn+int8"', float='"prune-magnitude-0.2"')
    path.write_text(text.replace('defenses = "nearest"', 'defenses = "lac-pda"'), "utf-8")
    assert any(cell.defense == "lac-pda" and cell.scheme == "unfolded-bn+int8" for cell in expand(load_suite(path)))


def test_a_control_is_measured_again_when_the_code_of_what_it_matches_changes(tmp_path: Path) -> None:
    path = tmp_path / "matched.toml"
    text = SUITE.format(rounded='"int8"', float='"prune-magnitude-0.2"').replace(
        'defenses = "nearest"', 'defenses = "control"'
    )
    control = '[defenses.control]\nmethod = "random-flips"\nsettings = { as_many_as = "gptq" }\n'
    path.write_text(text.replace("[[cells]]", f"{control}[[cells]]", 1), "utf-8")
    asked = load_suite(path)
    nodes = Plan(asked, expand(asked), None).nodes.values()
    (made,) = (node for node in nodes if node.stage == "defend" and node.config["defense"] == "random-flips")
    assert {"quantinel.defenses.random_flips", "quantinel.defenses.gptq"} <= set(made.modules)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ('defenses = "through"', "defenses.through trains through.*BatchNorm folded.*name the grid alone"),
        ('defenses = "none"', 'say defenses = "nearest"'),
        ('detectors = "weight-residuals"', "weight-residuals folds BatchNorm.*leave it out"),
    ],
)
def test_what_needs_folded_batch_norms_is_refused(tmp_path: Path, wrong: str, message: str) -> None:
    path = tmp_path / "unfolded.toml"
    text = SUITE.format(rounded='"unfolded-bn+int8"', float='"prune-magnitude-0.2"')
    through = '[defenses.through]\nmethod = "ft"\nsettings = { through = "quantized" }\n'
    path.write_text(text.replace('defenses = "nearest"', wrong).replace("[[cells]]", f"{through}[[cells]]", 1), "utf-8")
    with pytest.raises(UsageError, match=message):
        expand(load_suite(path))


def test_a_network_without_batch_norm_has_nothing_to_leave_unfolded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_file(build("alexnet", num_classes=10).state_dict(), tmp_path / "alexnet.safetensors")
    with pytest.raises(UnsupportedError, match="no BatchNorm that could stay unfolded"):
        traced(str(tmp_path / "alexnet.safetensors"), "alexnet", False)
