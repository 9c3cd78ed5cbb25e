from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from tests.bench.fakes import HEAD, SMALL, write_suite

from quantinel.bench.cells import expand
from quantinel.bench.images import Images
from quantinel.bench.nodes import Node
from quantinel.bench.plan import Plan
from quantinel.bench.resolved import resolved
from quantinel.errors import UsageError

ATTACKED = (
    HEAD
    + """
[[cells]]
models = "fresh"
attacks = ["none", "short"]
schemes = ["int8", "int4"]
defenses = ["nearest", "efrap"]
detectors = "weight-residuals"
"""
)


def plan(folder: Path, text: str) -> Plan:
    suite = write_suite(folder, text)
    return Plan(suite, expand(suite), None)


def count(made: Plan) -> dict[str, int]:
    stages = [node.stage for node in made.nodes.values()]
    return {stage: stages.count(stage) for stage in dict.fromkeys(stages)}


def test_every_stage_is_there_once(tmp_path: Path) -> None:
    made = plan(tmp_path, ATTACKED)
    assert count(made) == {"train": 1, "attack": 1, "evaluate": 2 + 8, "compress": 4, "defend": 8, "detect": 4}
    order = list(made.nodes)
    for name, node in made.nodes.items():
        assert all(order.index(upstream) < order.index(name) for upstream in node.inputs.values())
    for work in made.work:
        assert set(work.chain) == set(made.ancestors(work.result))
        assert (work.floating is None) == (work.cell.detector is not None)


def test_a_seed_has_an_attack_of_its_own(tmp_path: Path) -> None:
    assert count(plan(tmp_path, ATTACKED.replace("limit = 50", "seeds = [0, 1]")))["attack"] == 2


def test_ids_do_not_depend_on_the_order_of_options() -> None:
    images = {"a": Images("x", "test", 1, 0, "n"), "b": Images("y", "test", 1, 0, "n")}
    first = Node("defend", "x", {"a": 1, "b": {"c": 2, "d": 3}}, ("m",), {"p": "1", "q": "2"}, {"f": "1"}, images)
    second = Node(
        "defend", "y", {"b": {"d": 3, "c": 2}, "a": 1}, ("m",), {"q": "2", "p": "1"}, {"f": "1"},
        dict(reversed(list(images.items()))),
    )  # fmt: skip
    assert first.id == second.id
    for other in (
        dataclasses.replace(first, stage="detect"),
        dataclasses.replace(first, config={"a": 2, "b": {"c": 2, "d": 3}}),
        dataclasses.replace(first, inputs={"p": "1", "q": "3"}),
        dataclasses.replace(first, files={"f": "2"}),
        dataclasses.replace(first, images={**images, "b": Images("y", "test", 2, 0, "n")}),
    ):
        assert other.id != first.id


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("limit = 50", "threads = 2", {"train", "attack", "compress", "defend", "evaluate", "detect"}),
        ("limit = 50", "limit = 51", {"evaluate"}),
        ("[data.d]", "[data.d]\ntest_limit = 9", {"train", "attack", "compress", "defend", "evaluate", "detect"}),
        ("limit = 50", 'limit = 50\nbackend = "simulated"', {"evaluate"}),
        ("plant_steps = 4", "plant_steps = 5", {"attack", "compress", "defend", "evaluate", "detect"}),
        ("[data.d]", '[models.more]\nvictim = "bundled:victim_int4"\ndata = "d"\n[data.d]', set()),
    ],
)
def test_an_option_changes_the_stages_that_it_decides(tmp_path: Path, old: str, new: str, changed: set[str]) -> None:
    before, after = (plan(tmp_path, text).nodes.keys() for text in (ATTACKED, ATTACKED.replace(old, new, 1)))
    assert {name.partition("-")[0] for name in before - after} == changed


def test_what_the_plan_cannot_do_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"models\.fresh is trained on data\.d, which has no train entry"):
        plan(tmp_path, ATTACKED.replace('train = "bundled:calibration"', "", 1))
    bare = SMALL.replace('calibration = "bundled:calibration"\ntrain = "bundled:calibration"', "", 1)
    with pytest.raises(UsageError, match=r"data\.d has neither calibration nor train images"):
        plan(tmp_path, bare)
    with pytest.raises(UsageError, match=r"data\.d is \{root\}/x; say where the data lies"):
        plan(tmp_path, SMALL.replace("bundled:test", "{root}/x", 1))


def test_rows_describe_a_cell_without_places(tmp_path: Path) -> None:
    suite = write_suite(tmp_path, SMALL.replace("bundled:test", "{root}/x", 1))
    for cell in expand(suite):
        assert resolved(suite, cell)["data"]["test"] == "{root}/x"


def test_an_attacked_model_is_measured_with_its_own_trigger(tmp_path: Path) -> None:
    """The model's trigger once went over that of the attack, so another trigger's success was measured."""
    patch = 'trigger = { kind = "patch", row = 1, column = 1, height = 2, width = 2, value = 1.0 }\ntarget_class = 3\n'
    made = plan(tmp_path, ATTACKED.replace("training = { epochs = 1 }", "training = { epochs = 1 }\n" + patch))
    targets = {
        work.cell.attack: {made.nodes[name].config["target_class"] for name in (work.result, work.floating) if name}
        for work in made.work
        if work.cell.detector is None
    }
    assert targets == {"none": {3}, "short": {None}}


POISONED = (
    HEAD
    + """
[data.half]
test = "bundled:test"
calibration = "bundled:calibration"
calibration_images = 8
calibration_triggered = 50.0
calibration_class = 2

[data.made]
test = "bundled:test"
calibration = "synthetic"

[[cells]]
models = "fresh"
schemes = "int8"
defenses = "nearest"
calibration = ["d", "half", "made"]
"""
)


LENT = (
    HEAD
    + """
[attacks.lender]
method = "data-poisoning-trigger"
settings = { start_from = "pretrained" }
[attacks.one]
method = "data-poisoning"
trigger_of = { attack = "lender", model = "fresh" }
[attacks.two]
method = "data-poisoning"
trigger_of = { attack = "lender", model = "fresh" }
settings = { poison_rate = 0.0 }
[[cells]]
models = ["fresh", "v2"]
attacks = ["one", "two"]
[models.v2]
architecture = "resnet20"
training = {}
data = "d"
"""
)


def test_a_calibration_set_has_its_own_size_and_triggers(tmp_path: Path) -> None:
    suite = write_suite(tmp_path, POISONED)
    made = Plan(suite, expand(suite), None)
    own, half, synthetic = (node for node in made.nodes.values() if node.stage == "compress")
    assert not {"triggered_percent", "calibration_class"} & set(own.config)
    assert (half.config["triggered_percent"], half.config["calibration_class"]) == (50.0, 2)
    assert half.images["calibration"].limit == 8
    assert synthetic.images["calibration"].specification == "synthetic"
    described = {work.cell.calibration: resolved(suite, work.cell)["calibration"] for work in made.work}
    assert not {"calibration_images", "calibration_triggered", "calibration_class"} & set(
        described["d"]
    )  # as in rows of before
    assert described["half"]["calibration_images"] == 8


def test_a_trigger_is_trained_once_for_all_that_borrow_it(tmp_path: Path) -> None:
    made = plan(tmp_path, LENT)
    attacks = [node for node in made.nodes.values() if node.stage == "attack"]
    lenders = [node for node in attacks if node.config["attack"] == "data-poisoning-trigger"]
    assert (len(attacks), len(lenders)) == (5, 1)
    assert all(node.inputs["trigger"] == lenders[0].id for node in attacks if node is not lenders[0])
    assert count(made)["train"] == 1  # the lender begins with the clean network, the victims with random weights


def test_a_borrowed_trigger_belongs_to_the_configuration_of_a_row(tmp_path: Path) -> None:
    first, second = write_suite(tmp_path, LENT), write_suite(tmp_path, LENT.replace('"pretrained"', '"scratch"'))
    cell = next(cell for cell in expand(first) if cell.attack == "one")
    assert resolved(first, cell) != resolved(second, cell)
    assert "trigger_of" in resolved(first, cell)["attack"]
    ordinary = write_suite(tmp_path, ATTACKED)
    cell = next(cell for cell in expand(ordinary) if cell.attack == "short")
    assert resolved(ordinary, cell)["attack"] == {
        "method": "pq-backdoor",
        "settings": {"plant_steps": 4},
        "schemes": ["int4"],
    }  # rows of older versions stay comparable


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (('attack = "lender"', 'attack = "lendor"'), "did you mean 'lender'"),
        (('model = "fresh" }', 'model = "frish" }'), "did you mean 'fresh'"),
        (('attack = "lender"', 'attack = "two"'), "borrows its trigger itself"),
        (('method = "data-poisoning"\ntrigger_of', 'method = "pq-backdoor"\ntrigger_of'), "takes no trigger"),
    ],
)
def test_lenders_that_make_no_sense(tmp_path: Path, wrong: tuple[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan(tmp_path, LENT.replace(*wrong, 1))
