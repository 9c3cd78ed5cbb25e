"""Reading .pt2 archives: what is damaged, no program or no classifier is refused with a reason."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.model.archive_files import (
    CONSTANTS,
    MODEL,
    SAMPLES,
    WEIGHTS,
    Records,
    edit,
    edit_json,
    export,
    refused,
    zip_record,
)
from torch import Tensor, nn

from quantinel.errors import InputError, UnsupportedError
from quantinel.model.archive import parse_pt2
from quantinel.model.graph import trace


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_truncated_archive(static: bytes, share: float) -> None:
    refused(static[: int(len(static) * share)] or b"P")


@pytest.mark.parametrize("content", [b"not a zip", b"PK\x03\x04" + bytes(100), bytes(1000)])
def test_other_content(content: bytes) -> None:
    refused(content)


def test_deep_json_is_refused(static: bytes) -> None:
    refused(edit(static, lambda records: records.update({MODEL: b'{"a":' * 100_000})))
    refused(edit(static, lambda records: records.update({MODEL: b"[1]"})))
    refused(edit(static, lambda records: records.update({MODEL: b'{"schema_version": ' + b"9" * 9999 + b"}"})))


@pytest.mark.parametrize(
    "change",
    [
        lambda program: program["schema_version"].update(major=9),
        lambda program: program["opset_version"].update(aten=11),
        lambda program: program["opset_version"].update(evil=1),
        lambda program: program["graph_module"]["graph"]["nodes"].pop(0),
        lambda program: program["graph_module"]["signature"]["output_specs"].clear(),
        lambda program: program["graph_module"]["signature"]["input_specs"].pop(),
        lambda program: program["graph_module"]["graph"]["tensor_values"]["x"].update(dtype=5),
        lambda program: program["graph_module"]["graph"]["tensor_values"]["x"]["sizes"].pop(),
        lambda program: program["graph_module"]["graph"]["tensor_values"]["x"]["sizes"][1].update(as_int=-3),
    ],
)
def test_wrong_program(static: bytes, change: Callable[[Any], object]) -> None:
    refused(edit_json(static, change))


@pytest.mark.parametrize(
    "change",
    [
        lambda meta: meta["sizes"].append({"as_int": 4}),
        lambda meta: meta.update(storage_offset={"as_int": 1}),
        lambda meta: meta.update(storage_offset={"as_int": -1}),
        lambda meta: meta["sizes"][0].update(as_int=1 << 40),
        lambda meta: meta["strides"][0].update(as_int=-6),
        lambda meta: meta.update(layout=1),
        lambda meta: meta.update(dtype=29),
    ],
)
def test_weight_outside_its_record(static: bytes, change: Callable[[Any], object]) -> None:
    refused(edit_json(static, lambda config: change(config["config"]["head.weight"]["tensor_meta"]), WEIGHTS))


def test_weight_that_is_not_finite_is_named(static: bytes) -> None:
    nan = torch.full((3, 6), float("nan")).numpy().tobytes()
    config = json.loads(zip_record(static, WEIGHTS))["config"]
    path = "data/weights/" + config["head.weight"]["path_name"]
    refused(edit(static, lambda records: records.update({path: nan})), "'head.weight' holds NaN")


@pytest.mark.parametrize(
    ("name", "content"),
    [("byteorder", b"big"), ("archive_version", b"1"), ("archive_format", b"pt3"), ("models/other.json", b"{}")],
)
def test_wrong_archive(static: bytes, name: str, content: bytes) -> None:
    refused(edit(static, lambda records: records.update({name: content})))


class Program(nn.Module):
    """Any function of (itself, images), with a buffer."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


class TwoInputs(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (x + y).mean((2, 3))


@pytest.mark.parametrize(
    ("function", "match"),
    [
        pytest.param(lambda m, x: (x.mean((2, 3)), x.amax((2, 3))), "2 outputs", id="two-outputs"),
        pytest.param(lambda m, x: F.dropout(x, 0.5, True).mean((2, 3)), "training mode", id="dropout"),
        pytest.param(lambda m, x: x.mean((2, 3)) / x.max(), "depends on the others", id="batch-maximum"),
        pytest.param(lambda m, x: x.mean((0, 2, 3)).view(1, 3), "every batch size", id="batch-mean"),
        pytest.param(lambda m, x: x.reshape(3, 16), "every batch size", id="not-a-batch"),
        pytest.param(lambda m, x: x.mean((2, 3)) / 0, "not finite", id="not-finite"),
        pytest.param(lambda m, x: x.mean((2, 3)) + m.calls.add_(1), "overwrites its own", id="counts-its-calls"),
    ],
)
def test_unsuitable_program(function: Callable[..., Any], match: str) -> None:
    refused(export(Program(function).eval(), torch.rand(1, 3, 4, 4)), match)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(12, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x.permute(0, 2, 1, 3).flatten(2))[0][:, -1]


@pytest.mark.parametrize(
    ("module", "operator"),
    [(Recurrent(), "lstm.input"), (Program(lambda m, x: torch.rand(1) + x.mean((2, 3))), "rand.default")],
)
def test_operators_that_are_not_listed_are_unsupported(module: nn.Module, operator: str) -> None:
    with pytest.raises(UnsupportedError, match=f"model.pt2: operator 'torch.ops.aten.{operator}' is not on the list"):
        parse_pt2(export(module.eval(), torch.rand(1, 3, 4, 4)), "model.pt2")


@pytest.mark.filterwarnings("ignore")
def test_weight_normalisation() -> None:
    torch.manual_seed(0)
    convolution = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    module = nn.Sequential(convolution, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    images = torch.rand(5, 3, 4, 4)
    loaded = parse_pt2(export(module, torch.rand(1, 3, 4, 4)), "model.pt2").module
    torch.testing.assert_close(loaded(images), module(images))
    assert [layer.name for layer in trace(loaded, (3, 4, 4)).layers] == ["0"]


def test_unsuitable_inputs() -> None:
    mean = Program(lambda m, x: x.float().flatten(1))
    refused(export(TwoInputs(), torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 4)), "2 inputs")
    refused(export(mean, torch.rand(1, 3, 4)), "image batch")
    refused(export(mean, torch.zeros(1, 3, 4, 4, dtype=torch.uint8)), "image batch")


def test_message_for_a_fixed_batch_holds_the_recipe(caplog: pytest.LogCaptureFixture) -> None:
    data = export(Program(lambda m, x: x.reshape(3, 16)), torch.rand(1, 3, 4, 4))
    caplog.clear()
    assert "dynamic_shapes=({0: torch.export.Dim.AUTO},)" in refused(data)
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR", "CRITICAL")]


def test_training_mode_batch_normalisation_is_refused() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()).train()
    refused(export(module, torch.rand(2, 3, 4, 4)), "depends on the others|overwrites|every batch")


def test_program_that_overwrites_a_weight_through_a_view_is_refused(static: bytes) -> None:
    def call(target: str, name: str, **arguments: Any) -> dict[str, Any]:
        inputs = [{"name": key, "arg": value, "kind": 1} for key, value in arguments.items()]
        return {"target": f"torch.ops.aten.{target}", "inputs": inputs, "outputs": [{"as_tensor": {"name": name}}]}

    def poison(program: Any) -> None:
        weight, view = {"as_tensor": {"name": "p_head_weight"}}, {"as_tensor": {"name": "v"}}
        program["graph_module"]["graph"]["nodes"][:0] = [
            call("_unsafe_view.default", "v", self=weight, size={"as_ints": [18]}),
            call("fill_.Scalar", "w", self=view, value={"as_float": 1.0}),
        ]

    refused(edit_json(static, poison), "overwrites its own weights")


def test_quantized_program_is_named_as_such(static: bytes) -> None:
    target = "torch.ops.quantized_decomposed.dequantize_per_tensor.default"
    data = edit_json(static, lambda program: program["graph_module"]["graph"]["nodes"][0].update(target=target))
    assert "already quantized" in refused(data)


@pytest.mark.parametrize("seed", range(3))
def test_random_damage_is_an_input_error_or_harmless(static: bytes, dynamic: bytes, seed: int) -> None:
    generator = random.Random(seed)
    for _ in range(10):
        raw = bytearray(static)
        for _ in range(generator.randint(1, 4)):
            raw[generator.randrange(len(raw))] = generator.randrange(256)
        attempt(bytes(raw))
    for record in (MODEL, MODEL, WEIGHTS, CONSTANTS, SAMPLES):
        for _ in range(4):

            def damage(records: Records, record: str = record) -> None:  # checksums are right: it reaches the parsers
                content = bytearray(records[record])
                for _ in range(generator.randint(1, 3)):
                    content[generator.randrange(len(content))] = generator.choice(b'0123456789"{}[],:aest_\x00\xff')
                records[record] = bytes(content)

            attempt(edit(dynamic, damage))


@pytest.mark.parametrize("seed", range(3))
def test_random_schema_damage_is_an_input_error_or_harmless(dynamic: bytes, seed: int) -> None:
    generator = random.Random(seed)

    def damage(program: Any) -> None:
        places: list[tuple[Any, Any]] = []
        pending = [program["graph_module"]["graph"], program["graph_module"]["signature"]]
        while pending:
            item = pending.pop()
            for key in item if isinstance(item, dict) else range(len(item)):
                places.append((item, key))
                if isinstance(item[key], dict | list):
                    pending.append(item[key])
        item, key = generator.choice(places)
        item[key] = generator.choice([None, -1, 1 << 70, 1.5, "x", "", [], {}, [[]], {"as_int": 7}, True, item[key]])

    for _ in range(20):
        attempt(edit_json(dynamic, damage))


def attempt(data: bytes) -> None:
    """Any error but InputError fails the test."""
    with contextlib.suppress(InputError):
        exported = parse_pt2(data, "model.pt2")
        assert exported.module(torch.rand(2, *exported.input_shape)).shape[0] == 2
