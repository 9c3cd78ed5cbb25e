from __future__ import annotations

import math
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from tests.detectors.grids import Change, cast, crowded, projected, pruned, rounded
from torch import Tensor

from quantinel.detectors.file_forensics import FileForensics, FileOptions, examine_file
from quantinel.errors import NotAssessable, QuantinelError
from quantinel.model.loading import bundled_model
from quantinel.quantization.scheme import parse_scheme

INT8 = parse_scheme("int8")
CORE = ("edge-atoms", "residual-fit", "second-moment", "residual-coherence", "on-grid", "block-outliers")


def weights(change: Change | None = None, scheme: str = "int8") -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = {
        "conv.weight": torch.randn(64, 16, 3, 3, generator=generator),
        "fc.weight": torch.randn(100, 300, generator=generator),
        "conv.bias": torch.randn(64, generator=generator),
    }
    for name in ("conv.weight", "fc.weight"):
        weight = found[name]
        largest = weight.abs() == weight.abs().flatten(1).amax(1).reshape(-1, *[1] * (weight.ndim - 1))
        wanted = weight if change is None else change(weight, parse_scheme(scheme), generator)
        found[name] = torch.where(largest, weight, wanted).contiguous()
    return found


def examine(path: Path, tensors: dict[str, Tensor], scheme: str = "int8", **options: int) -> FileForensics:
    save_file(tensors, path / "model.safetensors")
    return examine_file(path / "model.safetensors", parse_scheme(scheme), FileOptions(**options))


def test_a_natural_file(tmp_path: Path) -> None:
    found = examine(tmp_path, weights())
    assert set(found.detections) == set(CORE)
    assert found.tensors == ("conv.weight", "fc.weight")
    assert found.skipped == {"conv.bias": "has fewer than two dimensions"}
    assert found.weights == found.sampled == 64 * 144 + 30_000
    assert all(detection.p_value is None or detection.p_value > 1e-4 for detection in found.detections.values())


@pytest.mark.parametrize("scheme", ["int8", "int4", "int8-full"])
def test_projected_weights(tmp_path: Path, scheme: str) -> None:
    found = examine(tmp_path, weights(projected(0.1, 0.001), scheme), scheme)
    atoms = found.detections["edge-atoms"]
    assert atoms.p_value is not None
    assert atoms.p_value < 1e-6
    assert min(atoms.by_layer.values()) > 0.03


@pytest.mark.parametrize(
    "change", [cast(torch.bfloat16), cast(torch.float16), pruned(0.6)], ids=["bf16", "fp16", "0.6"]
)
@pytest.mark.parametrize("scheme", ["int8", "int4", "int8-per-tensor", "int4-weight-percentile"])
def test_benign_files(tmp_path: Path, change: Change, scheme: str) -> None:
    found = examine(tmp_path, weights(change), scheme)
    for name in set(CORE) - {"on-grid"}:
        p_value = found.detections[name].p_value
        assert p_value is not None
        assert p_value > 1e-4


def test_narrow_types_are_read_as_stored(tmp_path: Path) -> None:
    for dtype, bits in ((torch.bfloat16, 8), (torch.float16, 11), (torch.float64, 24)):
        found = examine(tmp_path, {name: tensor.to(dtype) for name, tensor in weights().items()})
        notes = found.detections["edge-atoms"].notes
        assert (bits == 24) == (notes == ())
        assert bits == 24 or f"{bits} significand bits" in notes[0]


def test_quantized_files_are_not_judged(tmp_path: Path) -> None:
    found = examine(tmp_path, weights(rounded))
    assert set(found.detections) == {"on-grid", "block-outliers"}
    assert all("already quantized" in reason for reason in found.not_assessable.values())
    assert found.detections["on-grid"].score > 0.99


def test_a_sample_finds_what_the_whole_does(tmp_path: Path) -> None:
    tensors = weights(projected(0.3, 0.01)) | {"long": torch.randn(2, 60_000), "tall": torch.randn(9000, 8)}
    found = examine(tmp_path, tensors, sample=20_000, smallest_sample=1000)
    assert found.sampled < found.weights / 2
    p_value = found.detections["edge-atoms"].p_value
    assert p_value is not None
    assert p_value < 1e-6
    again = examine(tmp_path, tensors, sample=20_000, smallest_sample=1000)
    assert again.detections["edge-atoms"].statistics == found.detections["edge-atoms"].statistics


def test_long_rows_are_read_in_parts(tmp_path: Path) -> None:
    rows = torch.randn(2, 300_000, generator=torch.Generator().manual_seed(0))
    changed = {"a": projected(0.1, 0.01)(rows, INT8, torch.Generator())}
    for scheme in ("int8", "int8-per-tensor"):
        found = examine(tmp_path, changed, scheme)
        assert found.sampled == rows.numel()
        if scheme == "int8":
            assert found.detections["edge-atoms"].statistics["margin"] == pytest.approx(0.01)
    assert "too long" in examine(tmp_path, changed | weights(), "int4-weight-percentile").skipped["a"]


def test_searched_ranges_over_whole_tensors_need_the_model(tmp_path: Path) -> None:
    with pytest.raises(NotAssessable, match="load the model"):
        examine(tmp_path, weights(), "int8-per-tensor-weight-mse")
    assert set(examine(tmp_path, weights(crowded), "int8-weight-mse").not_assessable) == {
        "residual-fit",
        "second-moment",
    }


def test_the_bundled_victim() -> None:
    found = examine_file(bundled_model("bundled:victim_int8") / "model.safetensors", INT8)
    assert found.detections["edge-atoms"].score > 0.3
    assert (
        examine_file(bundled_model("bundled:victim_int4") / "model.safetensors", parse_scheme("int4"))
        .detections["edge-atoms"]
        .score
        > 0.01
    )


# ---------------------------------------------------------------- odd tensors


def extreme(value: float) -> Tensor:
    rows = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    rows[3, 5] = value
    return rows


ODD: dict[str, Tensor] = {
    "nan": extreme(math.nan),
    "inf": extreme(math.inf),
    "negative-inf": extreme(-math.inf),
    "huge": extreme(3e38),
    "all-huge": torch.full((16, 64), 3e38),
    "zeros": torch.zeros(16, 64),
    "ones": torch.ones(16, 64),
    "subnormal": torch.full((16, 64), 1e-42),
    "small": torch.randn(16, 64, generator=torch.Generator().manual_seed(0)) * 1e-37,
    "empty": torch.zeros(0, 64),
    "empty-rows": torch.zeros(64, 0),
    "one": torch.ones(1, 1),
    "one-row": torch.randn(1, 64, generator=torch.Generator().manual_seed(0)),
    "one-column": torch.randn(64, 1, generator=torch.Generator().manual_seed(0)),
    "signs": torch.randn(16, 64, generator=torch.Generator().manual_seed(0)).sign(),
    "one-weight": torch.eye(16, 64),
    "int": torch.ones(16, 64, dtype=torch.int32),
    "bool": torch.ones(16, 64, dtype=torch.bool),
    "float64-huge": torch.full((16, 64), 1e300, dtype=torch.float64),
    "half-inf": torch.full((16, 64), 1e6).half(),
    "scalar": torch.tensor(1.0),
}


@pytest.mark.parametrize("scheme", ["int8", "int2", "int8-per-tensor", "int4-weight-mse", "int4-weight-percentile"])
@pytest.mark.parametrize("name", ODD)
def test_odd_tensors_are_harmless(tmp_path: Path, name: str, scheme: str) -> None:
    with pytest.raises(NotAssessable) if name in ("nan", "empty", "int", "half-inf") else _any_outcome():
        examine(tmp_path, {"a.weight": ODD[name]}, scheme)
    beside = examine(tmp_path, weights() | {"odd": ODD[name]}, scheme)
    assert "conv.weight" in beside.tensors
    assert all(
        math.isfinite(value) for found in beside.detections.values() for value in (found.score, found.p_value or 0.0)
    )


class _any_outcome:  # noqa: N801
    """A result or a refusal of one line, but no other error."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: object, _: object) -> bool:
        refused = kind is not None and issubclass(kind, QuantinelError)
        return refused and "\n" not in str(error)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.lists(st.integers(0, 12), min_size=0, max_size=4),
    values=st.lists(st.floats(width=32), min_size=1, max_size=6),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int8]),
    scheme=st.sampled_from(["int8", "int4", "int2", "int8-per-tensor", "int4-weight-mse"]),
)
def test_any_tensor_is_harmless(
    tmp_path: Path, shape: list[int], values: list[float], dtype: torch.dtype, scheme: str
) -> None:
    count = math.prod(shape)
    numbers = torch.tensor(values).repeat(count // len(values) + 1)[:count].reshape(shape)
    with _any_outcome():
        examine(tmp_path, {"a": numbers.nan_to_num(0).to(dtype) if dtype == torch.int8 else numbers.to(dtype)}, scheme)


# ---------------------------------------------------------------- damaged files


@pytest.mark.parametrize("seed", range(3))
def test_damaged_files_are_harmless(tmp_path: Path, seed: int) -> None:
    generator = random.Random(seed)
    whole = save({name: tensor[:20].contiguous() for name, tensor in weights().items()})
    header = int.from_bytes(whole[:8], "little") + 8
    path = tmp_path / "a.safetensors"
    for turn in range(40):
        data = bytearray(whole)
        for _ in range(generator.randint(1, 4)):
            reach = header if turn % 2 else len(data)
            data[generator.randrange(reach)] = generator.choice(b'0123456789"{}[],:\x00\xff')
        path.write_bytes(data[: generator.randrange(len(data))] if turn % 5 == 0 else data)
        with _any_outcome():
            assert examine_file(path, INT8).tensors


# ---------------------------------------------------------------- memory

SCRIPT = """
import sys, torch
torch.set_num_threads(1)
from pathlib import Path
from quantinel.detectors.file_forensics import examine_file
from quantinel.quantization.scheme import parse_scheme
def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])  # of this program alone
before = peak()
examine_file(sys.argv[1], parse_scheme(sys.argv[2]))
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize(
    ("shape", "scheme"),
    [((1, 48_000_000), "int8-per-tensor"), pytest.param((12000, 4000), "int8", marks=pytest.mark.slow)],
)
def test_memory_does_not_grow_with_the_file(tmp_path: Path, shape: tuple[int, int], scheme: str) -> None:
    block = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0))
    save_file({"a": block.repeat(48).reshape(shape)}, tmp_path / "a.safetensors")
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "a.safetensors"), scheme]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert grown < 130_000  # KiB, of which the file would be 188,000; scipy's tests of significance are loaded as well
