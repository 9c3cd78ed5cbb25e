"""The victims that are kept in the repository are those that the suites' attacks describe."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.export_victims import victim_folders
from benchmarks.import_victims import problem

from quantinel.bench.cells import expand
from quantinel.bench.nodes import Node
from quantinel.bench.plan import Plan
from quantinel.bench.suite_files import load_suite
from quantinel.model.victim import WEIGHTS_NAME, read_manifest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
KEPT = [(folder.parent.name, folder.name) for folder in sorted((BENCHMARKS / "victims").glob("*/*/"))]


def attack_node(suite_name: str, label: str) -> Node:
    """The stage of the suite that made a victim."""
    suite = load_suite(BENCHMARKS / "suites" / f"{suite_name}.toml")
    plan = Plan(suite, expand(suite, Path("data")), Path("data"))
    return next(plan.nodes[name] for name, folder in victim_folders(plan).items() if folder == label)


@pytest.mark.parametrize(("suite", "label"), KEPT)
def test_a_kept_victim_is_what_its_suite_makes(suite: str, label: str) -> None:
    folder = BENCHMARKS / "victims" / suite / label
    assert problem(read_manifest(folder), folder / WEIGHTS_NAME, attack_node(suite, label)) is None


def test_networks_that_are_attacked_alike_have_folders_of_their_own() -> None:
    suite = load_suite(BENCHMARKS / "suites" / "architectures.toml")
    plan = Plan(suite, expand(suite, Path("data")), Path("data"))
    folders = victim_folders(plan)
    assert {"ca-int4-signs", "vgg-imagenette64-pq-int4", "mobilenet-cifar10-pq-int4"} <= set(folders.values())
    assert len(set(folders.values())) == len(folders)


def test_another_victim_is_refused(tmp_path: Path) -> None:
    kept = BENCHMARKS / "victims" / "threat-models"
    manifest, node = read_manifest(kept / "ca-int4"), attack_node("threat-models", "ca-int4")
    weights = kept / "ca-int4" / WEIGHTS_NAME
    assert problem(manifest, weights, node) is None
    assert "with other options" in str(problem(manifest, weights, attack_node("threat-models", "quasi-int4")))
    assert "another seed" in str(problem(manifest.model_copy(update={"seed": 1}), weights, node))
    assert "a resnet56 on" in str(problem(manifest.model_copy(update={"architecture": "resnet56"}), weights, node))
    (tmp_path / WEIGHTS_NAME).write_bytes(weights.read_bytes()[:-1] + b"\x00")
    assert "weights are not those" in str(problem(manifest, tmp_path / WEIGHTS_NAME, node))
