from __future__ import annotations

from tests.bench.made_rows import NEAREST, made_row, made_suite

from quantinel.bench.rows import provenance


def test_configuration_decides_the_hash() -> None:
    first, same, other = (provenance(config, "c")["config_sha256"] for config in ({"a": 1}, {"a": 1}, {"a": 2}))
    assert first == same != other


def test_times_and_places_are_not_repeatable() -> None:
    one = made_row(made_suite(), NEAREST, cda=90.0, seconds=1.0, hardware="x86_64, 2 cores", commit="a")
    other = made_row(made_suite(), NEAREST, cda=90.0, seconds=2.0, hardware="aarch64, 8 cores", commit="b")
    assert one.repeatable() == other.repeatable()
    assert one.repeatable() != made_row(made_suite(), NEAREST, cda=90.1).repeatable()
