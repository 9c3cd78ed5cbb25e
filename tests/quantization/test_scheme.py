from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantinel.errors import UsageError
from quantinel.quantization.scheme import SCHEMES, QuantScheme, parse_scheme

schemes = st.builds(
    QuantScheme,
    weight_bits=st.integers(2, 8),
    granularity=st.sampled_from(["channel", "tensor"]),
    grid=st.sampled_from(["narrow", "full"]),
    weight_range=st.sampled_from(["minmax", "mse", "percentile"]),
    activations=st.sampled_from(["dynamic", "none"]),
) | st.builds(
    QuantScheme,
    weight_bits=st.integers(2, 8),
    activation_bits=st.integers(2, 8),
    activation_range=st.sampled_from(["minmax", "mse", "percentile"]),
)


@given(schemes)
def test_name_reads_back(scheme: QuantScheme) -> None:
    assert parse_scheme(scheme.name) == scheme


@pytest.mark.parametrize("name", SCHEMES)
def test_listed_names_are_canonical(name: str) -> None:
    assert parse_scheme(name).name == name


def test_grids() -> None:
    narrow, full = QuantScheme(), QuantScheme(grid="full")
    assert (narrow.code_min, narrow.code_max, narrow.levels) == (-127, 127, 127.0)
    assert (full.code_min, full.code_max, full.levels) == (-128, 127, 127.5)
    assert QuantScheme(weight_bits=2).code_min == -1


@pytest.mark.parametrize("name", ["int9", "int1", "fp8", "", "int8-", "int8-foo", "int8-full-full", "int8-a9", "8"])
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="unknown scheme"):
        parse_scheme(name)


@pytest.mark.parametrize("field", [{"weight_bits": 1}, {"grid": "wide"}, {"activation_percentile": 20.0}])
def test_bad_fields_are_refused(field: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="scheme:"):
        QuantScheme(**field)  # type: ignore[arg-type]
