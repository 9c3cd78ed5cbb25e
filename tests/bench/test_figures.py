"""The figure of the curves, and the fits of the speed script, on made rows."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks import figures
from benchmarks.speed import rounding
from tests.bench.made_rows import made_row, made_suite

from quantinel.bench.suite import Suite

DATA = {"test": "bundled:test", "calibration": "bundled:calibration"}


@pytest.fixture
def suite() -> Suite:
    return made_suite(
        data={
            "cifar10": {**DATA, "train": "bundled:calibration"},
            "images-16": {**DATA, "calibration_images": 16},
            "triggered-10": {**DATA, "calibration_triggered": 10.0},
            "synthetic": {**DATA, "calibration": "synthetic"},
        },
        defenses={"reflect-b0": {"method": "reflect", "settings": {"budget": 0.0}}},
        cells=[
            {"models": "victim", "schemes": "int8", "defenses": ["invariant", "reflect", "reflect-b0", "efrap"]},
            {"models": "victim", "schemes": "int8", "defenses": "invariant",
             "calibration": ["images-16", "triggered-10", "synthetic"]},
            {"models": "victim", "schemes": "int8", "defenses": "efrap", "calibration": "images-16"},
        ],
        published=[],
    )  # fmt: skip


def test_rows_lie_where_their_options_say(suite: Suite) -> None:
    own = made_row(suite, "victim/none/int8/invariant/s0", cda=90.0, asr=1.0)
    leaning = made_row(suite, "victim/none/int8/reflect/s0", cda=90.0, asr=1.0)
    none = made_row(
        suite, "victim/none/int8/reflect-b0/s0", defense="reflect", settings={"defense": {"budget": 0.0}}, cda=90.0
    )
    few = made_row(suite, "victim/none/int8@images-16/invariant/s0", cda=89.0, asr=1.0)
    poisoned = made_row(suite, "victim/none/int8@triggered-10/invariant/s0", cda=89.0, asr=1.0)
    efrap = made_row(suite, "victim/none/int8/efrap/s0", cda=89.0, asr=1.0, extra={"flips_percent": 12.5})
    made = made_row(suite, "victim/none/int8@synthetic/invariant/s0", cda=89.0, asr=1.0)
    rows = (own, leaning, none, few, poisoned, efrap, made)
    assert [figures.budget(row, suite) for row in rows] == [None, 0.005, 0.0, None, None, None, None]
    assert [figures.calibration_size(row, suite) for row in rows] == [None, None, None, 16, None, None, 0]
    assert [figures.triggered_share(row, suite) for row in rows] == [0.0, None, None, None, 10.0, None, None]
    assert [figures.flip_share("efrap", row, suite) for row in rows] == [*[None] * 5, 12.5, None]
    other = made_row(suite, "victim/none/int8@images-16/efrap/s0", cda=89.0, asr=1.0, extra={"flips_percent": 12.5})
    assert figures.flip_share("efrap", other, suite) is None
    assert [figures.sweeps("invariant", 5, row, suite) for row in rows] == [5, *[None] * 6]


def test_equal_rows_draw_equal_pictures(suite: Suite, tmp_path: Path) -> None:
    rows = [made_row(suite, "victim/none/int8/reflect/s0", cda=90.0, asr=1.0)]
    for name in ("a.svg", "b.svg"):
        figures.draw(rows, suite, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_a_released_schedule_is_followed_to_its_end() -> None:
    assert rounding.Scaled(3.0, 5.0, (10, 30)).full == pytest.approx(2.0 + 0.1 * 10_000)
    assert rounding.slope([1.0, 10.0, 100.0], [2.0, 20.0, 200.0]) == pytest.approx(1.0)
