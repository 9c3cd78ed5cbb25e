"""Pruning as a scheme of cells: what is refused, what is planned, and rows of a bundled victim."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from tests.bench.fakes import InProcess

from quantinel.attacks import ATTACKS
from quantinel.bench.cells import expand, own_deployment
from quantinel.bench.deployment import parse_deployment
from quantinel.bench.plan import Plan
from quantinel.bench.runner import Options, run_suite
from quantinel.bench.suite import Suite
from quantinel.bench.suite_files import load_suite
from quantinel.data.sources import load_images
from quantinel.errors import UsageError
from quantinel.model.loading import bundled_model, load_model
from quantinel.model.victim import read_manifest, write_manifest

HEAD = """
title = "Pruning"
[run]
limit = 30
calibration_images = 16
[data.cifar10]
test = "bundled:test"
calibration = "bundled:calibration"
train = "bundled:calibration"
[models.victim]
victim = "{victim}"
data = "cifar10"
[models.fresh]
architecture = "resnet20"
training = {{ epochs = 1 }}
data = "cifar10"
[attacks.short]
method = "pruning-artifacts"
settings = {{ rate = 0.4, start_from = "pretrained" }}
"""


def suite(folder: Path, cells: str, victim: str = "bundled:victim_int8") -> Suite:
    path = folder / "pruned.toml"
    path.write_text(f"{HEAD.format(victim=victim)}[[cells]]\n{cells}\n", "utf-8")
    return load_suite(path)


@pytest.mark.parametrize(
    ("name", "compressor"),
    [
        ("int8", "static-ptq"),
        ("prune-l1-filters-0.3", "l1-filter-pruning"),
        ("prune-magnitude-per-layer-0.5", "magnitude-pruning"),
        ("prune-magnitude-0.5+int4-weight-only", "magnitude-pruning+weight-only-ptq"),
    ],
)
def test_schemes_read_back(name: str, compressor: str) -> None:
    assert parse_deployment(name).name == name
    assert parse_deployment(name).compressor == compressor


@pytest.mark.parametrize("name", ["prune-l1-filters-0.3+", "int8+prune-l1-filters-0.3", "prune-x-0.3", "int8+int4"])
def test_schemes_that_mean_nothing(name: str) -> None:
    with pytest.raises(UsageError):
        parse_deployment(name)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ('schemes = "prune-l1-filters-0.3"\ndefenses = "efrap"', "leaves a float network.*efrap.*prune-l1-filters-0.3"),
        ('schemes = ["int8"]\ndefenses = "none"', 'say defenses = "nearest"'),
        ('schemes = "prune-l1-filters-0.3+int8"\ndefenses = "none"', 'say defenses = "nearest"'),
        ('schemes = "prune-magnitude-0.3"\ndetectors = "weight-residuals"', "weight-residuals looks at.*leave it out"),
        ('schemes = "prune-l1-filters-1.5"\ndefenses = "none"', "rate is 1.5"),
    ],
)
def test_senseless_cells_are_refused(tmp_path: Path, cells: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        expand(suite(tmp_path, f'models = "victim"\n{cells}'))


def test_what_own_means(tmp_path: Path) -> None:
    """The rate of an attack's options, and of a pruning victim's manifest."""
    asked = suite(tmp_path, 'models = "fresh"\nattacks = ["short", "pruning-artifacts"]\nschemes = "own"\n'
                            'defenses = "none"')  # fmt: skip
    schemes = {cell.attack: cell.scheme for cell in expand(asked) if cell.scheme != "float"}
    assert schemes == {"short": "prune-l1-filters-0.4", "pruning-artifacts": "prune-l1-filters-0.3"}
    folder = tmp_path / "victim"
    folder.mkdir()
    manifest = read_manifest(bundled_model("bundled:victim_int8"))
    armed = ATTACKS["pruning-artifacts"].config(rate=0.2, upper_rate=0.5).compressors()
    pruners = [pruner.to_dict() for pruner in armed]
    write_manifest(folder, manifest.model_copy(update={"schemes": [], "compressors": pruners}))
    found = own_deployment(suite(tmp_path, 'models = "victim"', str(folder)), "victim", "none")
    assert found.name == "prune-l1-filters-0.2"


def test_the_stages_of_a_pruned_cell(tmp_path: Path) -> None:
    """Pruning without a search depends on neither images nor the seed; a pretrained start is honoured."""
    asked = suite(tmp_path, 'models = "fresh"\nattacks = "short"\nseeds = [0, 1]\ndefenses = "none"\n'
                            'schemes = ["own", "prune-l1-filters-searched-0.3"]')  # fmt: skip
    plan = Plan(asked, expand(asked), None)
    stages = [node.stage for node in plan.nodes.values()]
    assert {name: stages.count(name) for name in dict.fromkeys(stages)} == {
        "train": 2, "attack": 2, "evaluate": 6, "prune": 4,
    }  # fmt: skip
    for node in plan.nodes.values():
        if node.stage == "prune":
            assert ("calibration" in node.images) == ("searched" in node.config["scheme"]) == ("seed" in node.config)
        if node.stage == "attack":
            assert set(node.inputs) == {"model"}
        if node.stage == "evaluate":
            assert node.config["backend"] == "float"


def test_rows_of_a_bundled_victim(tmp_path: Path) -> None:
    asked = suite(
        tmp_path,
        'models = "victim"\nschemes = ["prune-l1-filters-0.3", "prune-magnitude-0.2"]\ndefenses = "none"\n'
        '[[cells]]\nmodels = "victim"\nschemes = "prune-magnitude-0.2+int8"\ndefenses = "nearest"',
    )
    options = Options(tmp_path / "results", tmp_path / "store")
    summary = run_suite(asked, expand(asked), options, InProcess())
    rows = {row.scheme: row for row in summary.rows}
    assert {row.status for row in summary.rows} == {"ok"}
    floating, filters = rows["float"], rows["prune-l1-filters-0.3"]
    single, both = rows["prune-magnitude-0.2"], rows["prune-magnitude-0.2+int8"]
    assert [row.compressor for row in (floating, filters, single, both)] == [
        "none", "l1-filter-pruning", "magnitude-pruning", "magnitude-pruning+static-ptq",
    ]  # fmt: skip
    assert [row.backend for row in (floating, filters, single, both)] == ["float"] * 3 + ["onnxruntime"]
    assert {row.defense for row in (floating, filters, single)} == {"none"}
    assert {row.attack for row in summary.rows} == {"pq-backdoor"}
    assert single.extra == {"pruned_percent": 20.0}
    assert both.extra["pruned_percent"] == 20.0
    assert both.extra["layers"] == both.extra["layers_equal"] == 20
    for row in (filters, single, both):
        assert (row.float_cda, row.float_asr) == (floating.cda, floating.asr)
        assert "prune" in row.stages
    assert filters.cda is not None
    assert floating.cda is not None
    assert single.cda is not None
    assert filters.cda < single.cda <= floating.cda + 10


def test_the_pruned_model_is_a_directory_like_any_other(tmp_path: Path) -> None:
    from quantinel.bench.images import Images
    from quantinel.bench.stages.job import Job
    from quantinel.bench.stages.prune import run

    images = Images("bundled:calibration", "train", 20, 0, "cifar10")
    config = {"scheme": "prune-l1-filters-searched-0.2", "seed": 1, "architecture": None}
    output = tmp_path / "output"
    output.mkdir()
    job = Job(config, {"model": bundled_model("bundled:victim_int4")}, {"calibration": images}, output, tmp_path)
    run(job)
    pruned, victim = load_model(output / "model"), load_model("bundled:victim_int4")
    assert pruned.victim is not None
    assert victim.victim is not None
    assert dataclasses.replace(pruned, module=victim.module).input_shape == victim.input_shape
    assert pruned.victim.trigger == victim.victim.trigger
    assert pruned.victim.weights_sha256 != victim.victim.weights_sha256
    shown = load_images("bundled:test", limit=4).as_float()
    assert not pruned.module(shown).equal(victim.module(shown))
