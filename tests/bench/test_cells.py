from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from tests.bench.fakes import HEAD, ids, write_suite

from quantinel.bench.cells import FLOAT, expand
from quantinel.bench.runner import select
from quantinel.bench.suite_files import BUNDLED, load_suite
from quantinel.errors import UsageError

GRID = (
    HEAD
    + """
[groups]
inner = ["nearest"]
both = ["@inner", "quick", "nearest"]
[[cells]]
models = ["v", "fresh"]
attacks = ["none", "short"]
schemes = ["int8", "own"]
defenses = "@both"
detectors = "weight-residuals"
seeds = [0, 1]
[[cells]]
models = "v"
schemes = "int8"
defenses = "nearest"
calibration = ["d", "other"]
"""
)


@pytest.fixture
def text() -> str:
    return GRID.replace('["v", "fresh"]\nattacks = ["none", "short"]', '"fresh"\nattacks = ["short"]')


def test_ids_tell_cells_apart_and_float_comes_first(tmp_path: Path, text: str) -> None:
    cells = expand(write_suite(tmp_path, text))
    assert len({cell.id for cell in cells}) == len(cells) == len(set(cells))
    for group in {cell.group for cell in cells}:
        of_group = [cell for cell in cells if cell.group == group]
        assert [cell.scheme == FLOAT for cell in of_group] == [True] + [False] * (len(of_group) - 1)


def test_groups_own_schemes_seeds_and_calibration(tmp_path: Path, text: str) -> None:
    found = ids(write_suite(tmp_path, text))
    of_seed = [
        "fresh/short/float/none/s0",
        *(f"fresh/short/{scheme}/{name}/s0" for scheme in ("int8", "int4")
          for name in ("nearest", "quick", "weight-residuals")),
    ]  # fmt: skip
    assert found == [
        *of_seed, *(name.replace("/s0", "/s1") for name in of_seed),
        "v/none/float/none/s0", "v/none/int8/nearest/s0", "v/none/int8@other/nearest/s0",
    ]  # fmt: skip


def test_own_needs_somebody_who_is_armed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match='fresh with attack none is armed for no scheme; name one instead of "own"'):
        expand(write_suite(tmp_path, GRID))


def test_own_of_a_victim_below_the_data_root(tmp_path: Path) -> None:
    source = BUNDLED.parent / "victim_int4"
    shutil.copytree(source, tmp_path / "root" / "victim")
    text = HEAD.replace("bundled:victim_int8", "{root}/victim") + (
        '[[cells]]\nmodels = "v"\nschemes = "own"\ndefenses = "nearest"\n'
    )
    suite = write_suite(tmp_path, text)
    assert [cell.scheme for cell in expand(suite, tmp_path / "root")] == [FLOAT, "int4"]
    with pytest.raises(UsageError, match="--data-root"):
        expand(suite)
    manifest = json.loads((tmp_path / "root" / "victim" / "victim.json").read_text())
    (tmp_path / "root" / "victim" / "victim.json").write_text(json.dumps({**manifest, "schemes": []}))
    with pytest.raises(UsageError, match="armed for no scheme"):
        expand(suite, tmp_path / "root")


def test_patterns_choose_cells(tmp_path: Path, text: str) -> None:
    cells = expand(write_suite(tmp_path, text))
    assert select(cells, (), None) == cells
    assert [cell.id for cell in select(cells, ["v/*", "*/s1"], None)] == [
        cell.id for cell in cells if cell.id.startswith("v/") or cell.id.endswith("/s1")
    ]
    with pytest.raises(UsageError, match="unknown cell 'v/none/int8/neares/s0'; did you mean 'v/none/int8/nearest/s0'"):
        select(cells, ["v/*", "v/none/int8/neares/s0"], None)


def test_a_long_list_of_cells_is_not_printed_whole(tmp_path: Path, text: str) -> None:
    cells = [dataclasses.replace(cell, seed=seed) for cell in expand(write_suite(tmp_path, text)) for seed in range(9)]
    with pytest.raises(UsageError, match=r"and \d+ more") as caught:
        select(cells, ["?"], None)
    assert len(str(caught.value)) < 1500


def test_shards_are_a_partition_for_every_count(tmp_path: Path) -> None:
    text = GRID.replace('schemes = ["int8", "own"]', 'schemes = ["int8"]')
    for cells in (expand(write_suite(tmp_path, text)), expand(load_suite(BUNDLED / "smoke.toml"))):
        groups = {cell.group for cell in cells}
        for count in range(1, len(cells) + 3):
            shards = [select(cells, (), f"{index}/{count}") for index in range(1, count + 1)]
            assert sorted(cell for shard in shards for cell in shard) == sorted(cells)
            if count <= len(groups):
                for group in groups:
                    assert sum(any(cell.group == group for cell in shard) for shard in shards) == 1
            else:
                assert all(shards[: len(cells)])


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2", "1/2/3", ""])
def test_shards_that_do_not_exist(tmp_path: Path, text: str, shard: str) -> None:
    with pytest.raises(UsageError, match="--shard"):
        select(expand(write_suite(tmp_path, text)), (), shard)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("plant_steps = 4", 'trigger = "blend"', "unknown trigger of attacks.short: 'blend'; did you mean 'blended'"),
        (
            "plant_steps = 4",
            """trigger = '{"kind": "filter", "hue": 3}'""",
            "attacks.short.trigger: a filter trigger has strength, matrix, offset; unknown: hue",
        ),
        ('test = "bundled:test"', 'test = "bundled:tset"', "data.d.test: 'bundled:tset'; did you mean 'bundled:test'"),
    ],
)
def test_triggers_and_bundled_images_are_checked(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        expand(write_suite(tmp_path, GRID.replace(old, new, 1)))
