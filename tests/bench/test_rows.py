from __future__ import annotations

from tests.bench.made_rows import NEAREST, made_row, made_suite

from quantinel.bench.rows import ResultRow, provenance


def test_configuration_decides_the_hash() -> None:
    first, same, other = (provenance(config, "c")["config_sha256"] for config in ({"a": 1}, {"a": 1}, {"a": 2}))
    assert first == same != other


def test_times_and_places_are_not_repeatable() -> None:
    one = made_row(
        made_suite(), NEAREST, cda=90.0, seconds=1.0, hardware="x86_64, 2 cores", commit="a", devices={"train": "cpu"}
    )
    other = made_row(made_suite(), NEAREST, cda=90.0, seconds=2.0, hardware="aarch64, 8 cores", commit="b")
    assert one.repeatable() == other.repeatable()
    assert one.repeatable() != made_row(made_suite(), NEAREST, cda=90.1).repeatable()


def test_rows_from_before_devices_were_recorded_are_read() -> None:
    row = made_row(made_suite(), NEAREST)
    earlier = row.model_dump_json(exclude={"devices"})
    assert "devices" not in earlier
    assert ResultRow.model_validate_json(earlier).devices == {}
