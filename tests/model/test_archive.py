"""Reading .pt2 archives: what torch.export.save writes comes back equal, and nothing hostile runs."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import random
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from quantinel.errors import InputError
from quantinel.model.archive import load_pt2, parse_pt2, read_file
from quantinel.model.graph import trace
from quantinel.model.zoo import ViT

Records = dict[str, bytes]
MODEL, WEIGHTS, CONSTANTS, SAMPLES = (
    "models/model.json",
    "data/weights/model_weights_config.json",
    "data/constants/model_constants_config.json",
    "data/sample_inputs/model.pt",
)


class SharedReLU(nn.Module):
    """One in-place ReLU, called first on the input itself; BatchNorm; a buffer that is not saved as one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(8, 5)
        self.register_buffer("gain", torch.linspace(1, 2, 8), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.conv(self.relu(x - 0.5 if self.training else x))))
        pooled = F.adaptive_avg_pool2d(F.max_pool2d(x, 2), 1).view(x.shape[0], -1)
        return self.head(self.relu(pooled * self.gain))


class Tokens(nn.Module):
    """Class token, attention as torch.nn has it (the batch in the middle), and windows."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x)
        batch, channels, height, width = x.shape
        x = (
            x.view(batch, channels, height // 2, 2, width // 2, 2)
            .permute(0, 2, 4, 3, 5, 1)
            .reshape(batch, -1, channels)
        )
        x = torch.cat([self.token.expand(batch, -1, -1), x], 1)
        return self.head((x + self.attention(x, x, x, need_weights=False)[0])[:, 0])


class Tiny(nn.Module):
    """The smallest classifier with a weight, a buffer that becomes a constant, and a multi-output operator."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 3)
        self.register_buffer("shift", torch.ones(3), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        low, high = x.chunk(2, dim=2)
        return self.head(torch.cat([low.mean((2, 3)), high.amax((2, 3))], 1)) + self.shift


def export(module: nn.Module, *examples: Any, decompose: bool = False, **options: Any) -> bytes:
    """What torch.export.save writes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module, examples, **options)
        if decompose:
            program = program.run_decompositions()
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
    return buffer.getvalue()


def edit(data: bytes, change: Callable[[Records], object], compression: int = zipfile.ZIP_STORED) -> bytes:
    """The archive with other records; checksums are right again."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        root = archive.namelist()[0].split("/")[0]
        records = {name[len(root) + 1 :]: archive.read(name) for name in archive.namelist()}
    change(records)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in records.items():
            archive.writestr(f"{root}/{name}", content)
    return buffer.getvalue()


def zip_record(data: bytes, path: str) -> bytes:
    """One record of an archive."""
    found: list[bytes] = []
    edit(data, lambda records: found.append(records[path]))
    return found[0]


def edit_json(data: bytes, change: Callable[[Any], object], record: str = MODEL) -> bytes:
    """The archive with another JSON record."""

    def apply(records: Records) -> None:
        content = json.loads(records[record])
        change(content)
        records[record] = json.dumps(content).encode()

    return edit(data, apply)


def refused(data: bytes, match: str | None = None) -> str:
    """The one-line message with which the archive is refused."""
    with pytest.raises(InputError, match=match) as caught:
        parse_pt2(data, "model.pt2")
    message = str(caught.value)
    assert message.startswith("model.pt2: ")
    assert "\n" not in message
    assert ";" in message, "says what to do next"
    return message


@pytest.fixture(scope="module")
def static() -> bytes:
    torch.manual_seed(0)
    return export(Tiny().eval(), torch.rand(1, 3, 4, 4))


@pytest.fixture(scope="module")
def dynamic() -> bytes:
    torch.manual_seed(0)
    return export(Tiny().eval(), torch.rand(2, 3, 4, 4), dynamic_shapes=({0: Dim.AUTO},))


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """A file that exists when hostile code has run."""
    return tmp_path / "executed"


# ---------------------------------------------------------------- round trips


@pytest.mark.parametrize(
    ("make", "batch", "options"),
    [
        pytest.param(SharedReLU, 1, {}, id="cnn-static-1"),
        pytest.param(SharedReLU, 4, {}, id="cnn-static-4"),
        pytest.param(SharedReLU, 2, {"dynamic_shapes": ({0: Dim("n", min=2, max=64)},)}, id="cnn-dynamic-min-2"),
        pytest.param(SharedReLU, 1, {"strict": True}, id="cnn-strict"),
        pytest.param(SharedReLU, 2, {"dynamic_shapes": ({0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO},)}, id="cnn-any-size"),
        pytest.param(Tokens, 1, {}, id="tokens-static-1"),
        pytest.param(Tokens, 1, {"decompose": True}, id="tokens-core-aten"),
        pytest.param(lambda: ViT(7, 3, 16, 4, 16, 1, 4), 1, {}, id="vit-static-1"),
        pytest.param(lambda: ViT(7, 3, 16, 4, 16, 1, 4), 1, {"decompose": True}, id="vit-core-aten"),
        pytest.param(lambda: ViT(7, 3, 16, 4, 16, 1, 4), 2, {"dynamic_shapes": ({0: Dim.AUTO},)}, id="vit-dynamic"),
    ],
)
def test_round_trip(make: Callable[[], nn.Module], batch: int, options: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    original = make().eval()
    path = tmp_path / "model.pt2"
    path.write_bytes(export(original, torch.rand(batch, 3, 16, 16), **options))

    exported = load_pt2(path)

    assert exported.input_shape == (3, 16, 16)
    assert exported.batch_size == (None if "dynamic_shapes" in options else batch)
    assert not exported.module.training
    kept = dict(exported.module.state_dict()).items()
    assert all(torch.equal(tensor, original.state_dict()[name]) for name, tensor in kept if name != "gain")
    assert {name for name, _ in exported.module.named_parameters()} == {name for name, _ in original.named_parameters()}
    for size in (1, 2, 5):
        images = torch.rand(size, 3, 16, 16)
        before = images.clone()
        with torch.no_grad():
            torch.testing.assert_close(exported.module(images), original(images.clone()), rtol=1e-5, atol=1e-5)
        assert torch.equal(images, before), "the caller's images are not overwritten"


def test_batch_behind_the_tokens() -> None:
    """Regression: attention with the batch in the middle merges it behind the tokens, (T, N, C) to (T N, C)."""

    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, 16, 4, 4)
            self.attention = nn.MultiheadAttention(16, 4)
            self.head = nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.patches(x).flatten(2).permute(2, 0, 1)
            return self.head((x + self.attention(x, x, x)[0]).mean(0))

    original = Sequence().eval()
    module = parse_pt2(export(original, torch.rand(1, 3, 16, 16)), "model.pt2").module
    images = torch.rand(5, 3, 16, 16)
    torch.testing.assert_close(module(images), original(images), rtol=1e-4, atol=1e-5)


def test_float_noise_that_a_network_magnifies_does_not_look_like_a_mixed_batch() -> None:
    """Regression: an untrained deep network was refused with the advice to call model.eval()."""

    class Chaotic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3)
            self.head = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x).mean((2, 3))
            for _ in range(12):
                x = torch.sin(9.0 * x)
            return self.head(x)

    original = Chaotic().eval()
    module = parse_pt2(export(original, torch.rand(1, 3, 16, 16)), "model.pt2").module
    assert module(torch.rand(2, 3, 16, 16)).shape == (2, 4)


def test_result_is_differentiable_and_can_be_exported_again(static: bytes) -> None:
    module = parse_pt2(static, "model.pt2").module
    module(torch.rand(2, 3, 4, 4)).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    assert [layer.kind for layer in trace(module, (3, 4, 4)).layers] == ["linear"]


def test_agrees_with_torch_export_load_on_a_trusted_file(static: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = torch.export.load(io.BytesIO(static)).module()
        images = torch.rand(1, 3, 4, 4)
        torch.testing.assert_close(parse_pt2(static, "model.pt2").module(images), reference(images), rtol=0, atol=0)


def test_shared_weights_stay_shared() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(3, 3)
            self.second = nn.Linear(3, 3)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x.mean((2, 3))))

    module = parse_pt2(export(Tied().eval(), torch.rand(1, 3, 4, 4)), "model.pt2").module
    pointers = [parameter.data_ptr() for name, parameter in module.named_parameters() if "weight" in name]
    assert len(set(pointers)) == 1


def test_single_output_in_a_dictionary_is_fine() -> None:
    class Wrapped(Tiny):
        def forward(self, x: Tensor) -> Any:
            return {"logits": super().forward(x)}

    exported = parse_pt2(export(Wrapped().eval(), torch.rand(1, 3, 4, 4)), "model.pt2")
    assert exported.module(torch.rand(2, 3, 4, 4)).shape == (2, 3)


# ---------------------------------------------------------------- hostile archives


class _Payload:
    """A pickle that makes a file when it is opened."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


class _Command(_Payload):
    def __reduce__(self) -> Any:
        import os

        return os.system, (f"touch {self.marker}",)


def saved(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def source(marker: Path) -> str:
    """An expression that makes a file when it is evaluated."""
    return f"__import__('pathlib').Path({str(marker)!r}).touch()"


def test_payloads_are_live(marker: Path) -> None:
    for run in (
        lambda: pickle.loads(pickle.dumps(_Payload(marker))),
        lambda: pickle.loads(pickle.dumps(_Command(marker))),
        lambda: torch.load(io.BytesIO(saved(_Payload(marker))), weights_only=False),
        lambda: eval(source(marker)),  # noqa: S307
    ):
        run()
        marker.unlink()


def pickled_payload(config: str, folder: str, path: str | None) -> Callable[[Records, Path], None]:
    """Replace one tensor by a pickle; ``path`` renames its record."""

    def change(records: Records, marker: Path) -> None:
        content = json.loads(records[config])
        payload = next(iter(content["config"].values()))
        payload["use_pickle"] = True
        payload["path_name"] = path or payload["path_name"]
        records[folder + payload["path_name"]] = saved(_Payload(marker))
        if path:
            payload["tensor_meta"] = None
            records[folder + path] = pickle.dumps(_Payload(marker))
        records[config] = json.dumps(content).encode()

    return change


def set_record(name: str, make: Callable[[Path], bytes]) -> Callable[[Records, Path], None]:
    return lambda records, marker: records.update({name: make(marker)})


def in_program(change: Callable[[Any, Path], object]) -> Callable[[Records, Path], None]:
    def apply(records: Records, marker: Path) -> None:
        content = json.loads(records[MODEL])
        change(content, marker)
        records[MODEL] = json.dumps(content).encode()

    return apply


def add_node(target: str, *arguments: tuple[str, dict[str, Any]]) -> Callable[[Records, Path], None]:
    """A first node that calls ``target``; MARKER and SOURCE in its strings are replaced."""

    def change(program: Any, marker: Path) -> None:
        inputs = [{"name": name, "arg": argument, "kind": 1} for name, argument in arguments]
        text = json.dumps(inputs).replace("SOURCE", source(marker)).replace("MARKER", str(marker))
        node = {
            "target": target,
            "inputs": json.loads(text),
            "outputs": [{"as_tensor": {"name": "evil"}}],
            "metadata": {},
        }
        program["graph_module"]["graph"]["nodes"].insert(0, node)

    return in_program(change)


def rename(old: Callable[[Any], str], new: str) -> Callable[[Records, Path], None]:
    """Another name for a value, everywhere."""

    def apply(records: Records, marker: Path) -> None:
        content = json.loads(records[MODEL])
        name = old(content)

        def walk(item: Any) -> Any:
            if isinstance(item, dict):
                return {walk(key): walk(value) for key, value in item.items()}
            if isinstance(item, list):
                return [walk(value) for value in item]
            return new.replace("SOURCE", source(marker)) if item == name else item

        records[MODEL] = json.dumps(walk(content)).encode()

    return apply


def sizes(program: Any, marker: Path) -> None:
    for meta in program["graph_module"]["graph"]["tensor_values"].values():
        for size in meta["sizes"]:
            if "as_expr" in size:
                size["as_expr"]["expr_str"] = source(marker)


def unused_size(program: Any, marker: Path) -> None:
    values = program["graph_module"]["graph"]["sym_int_values"]
    values["evil"] = {"as_expr": {"expr_str": source(marker), "hint": None}}


def signature(program: Any) -> Any:
    return program["graph_module"]["module_call_graph"][0]["signature"]


def pytree_default(program: Any, marker: Path) -> None:
    context = {"default_factory_module": "this", "default_factory_name": "x", "dict_context": []}
    spec = [1, {"type": "collections.defaultdict", "context": context, "children_spec": []}]
    signature(program)["in_spec"] = json.dumps(spec)


def pytree_enum(program: Any, marker: Path) -> None:
    context = json.dumps([{"__enum__": True, "fqn": "this:x", "name": "y"}])
    signature(program)["out_spec"] = json.dumps([1, {"type": "builtins.dict", "context": context, "children_spec": []}])


def first_node(program: Any) -> str:
    name: str = program["graph_module"]["graph"]["nodes"][0]["outputs"][0]["as_tensors"][0]["name"]
    return name


HOSTILE: dict[str, Callable[[Records, Path], None]] = {
    "pickled-weight": pickled_payload(WEIGHTS, "data/weights/", None),
    "pickled-constant": pickled_payload(CONSTANTS, "data/constants/", None),
    "opaque-object": pickled_payload(CONSTANTS, "data/constants/", "opaque_obj_0"),
    "custom-object": pickled_payload(CONSTANTS, "data/constants/", "custom_obj_0"),
    "pickle-behind-another-name": pickled_payload(WEIGHTS, "data/weights/", "weight_99"),
    "legacy-weights": set_record("data/weights/model.pt", lambda marker: saved({"a": _Payload(marker)})),
    "legacy-constants": set_record("data/constants/model.pt", lambda marker: saved({"a": _Payload(marker)})),
    "sample-inputs": set_record(SAMPLES, lambda marker: saved(((_Payload(marker),), {}))),
    "sample-inputs-os-system": set_record(SAMPLES, lambda marker: saved(((_Command(marker),), {}))),
    "sample-inputs-bare-pickle": set_record(SAMPLES, lambda marker: pickle.dumps(_Payload(marker))),
    "size-expression": in_program(sizes),
    "unused-size-expression": in_program(unused_size),
    "guard": in_program(lambda program, marker: program.update(guards_code=[f"{source(marker)} is None"])),
    "pytree-default-factory": in_program(pytree_default),
    "pytree-enum": in_program(pytree_enum),
    "argument-name": in_program(
        lambda program, marker: signature(program).update(forward_arg_names=[f"x=({source(marker)})"])
    ),
    "input-name": rename(lambda program: "x", "x=(SOURCE)"),
    "node-name": rename(first_node, "a = SOURCE; b"),
    "weight-name": rename(lambda program: "head.weight", 'head", SOURCE, "weight'),
    "target-os-system": add_node("torch.os.system", ("", {"as_string": "touch MARKER"})),
    "target-hub": add_node("torch.hub.os.system", ("", {"as_string": "touch MARKER"})),
    "target-eval": add_node("builtins.eval", ("", {"as_string": "SOURCE"})),
    "target-operator-call": add_node("_operator.methodcaller", ("", {"as_string": "touch"})),
    "target-math-loader": add_node("math.__loader__.load_module", ("", {"as_string": "this"})),
    "target-aten-attribute": add_node("torch.ops.aten.__class__.__init__", ("", {"as_string": "SOURCE"})),
    "target-higher-order": add_node("torch.ops.higher_order.cond", ("", {"as_string": "SOURCE"})),
    "target-custom-operator": add_node("torch.ops.evil.run.default", ("", {"as_string": "SOURCE"})),
    "target-extension": add_node("#evil:run", ("", {"as_string": "SOURCE"})),
    "target-from-file": add_node(
        "torch.ops.aten.from_file.default",
        ("filename", {"as_string": "MARKER"}),
        ("shared", {"as_bool": True}),
        ("size", {"as_int": 4}),
    ),
    "argument-operator": add_node("torch.ops.aten.relu.default", ("self", {"as_operator": "torch.os.system"})),
    "argument-graph": add_node("torch.ops.aten.relu.default", ("self", {"as_graph": {"name": "g", "graph": {}}})),
    "argument-string": add_node("torch.ops.aten.gelu.default", ("approximate", {"as_string": "'+SOURCE+'"})),
    "library": set_record("data/aotinductor/model/a.wrapper.so", lambda marker: b"\x7fELF"),
    "library-elsewhere": set_record("extra/plugin.so", lambda marker: b"\x7fELF"),
    "source-file": set_record("data/aotinductor/model/a.cpp", lambda marker: b"int main() {}"),
    "path-traversal": set_record("extra/../../../etc/passwd", lambda marker: b"x"),
    "unknown-record": set_record("code/__init__.py", lambda marker: source(marker).encode()),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_archive_is_refused_and_runs_nothing(name: str, dynamic: bytes, marker: Path) -> None:
    data = edit(dynamic, lambda records: HOSTILE[name](records, marker))
    refused(data)
    assert not marker.exists()


@pytest.mark.parametrize(
    "target", ["builtins.eval", "torch.ops.aten.linear.default.__class__", "torch.ops.aten.linear.out"]
)
def test_replaced_target_is_refused(static: bytes, target: str) -> None:
    refused(edit_json(static, lambda program: program["graph_module"]["graph"]["nodes"][-2].update(target=target)))


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zip_bomb_is_refused(static: bytes, compression: int) -> None:
    data = edit(static, lambda records: records.update({"extra/zeros": bytes(1 << 24)}), compression)
    assert len(data) < 1 << 19
    assert "zip bomb" in refused(data)


def test_compressed_archive_is_refused(static: bytes) -> None:
    refused(edit(static, lambda records: None, zipfile.ZIP_DEFLATED))


def test_overlapping_records_are_refused(static: bytes) -> None:
    buffer = io.BytesIO(edit(static, lambda records: records.update({"extra/a": bytes(4096)})))
    with zipfile.ZipFile(buffer, "a") as archive:
        entry = archive.infolist()[-1]
        for index in range(200):  # the central directory names the same bytes again and again
            copy = zipfile.ZipInfo(f"{entry.filename}{index}")
            copy.header_offset, copy.file_size, copy.compress_size = (
                entry.header_offset,
                entry.file_size,
                entry.file_size,
            )
            copy.CRC = entry.CRC
            archive.filelist.append(copy)
        archive._didModify = True  # type: ignore[attr-defined]
    assert "zip bomb" in refused(buffer.getvalue())


def test_duplicate_records_are_refused(static: bytes) -> None:
    buffer = io.BytesIO(edit(static, lambda records: None))
    with zipfile.ZipFile(buffer, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(archive.namelist()[0], b"x")
    refused(buffer.getvalue(), "one name")


def as_int(value: int) -> dict[str, Any]:
    return {"as_int": value}


def test_memory_bomb_is_refused_before_it_is_allocated(static: bytes) -> None:
    def bomb(program: Any) -> None:
        node = {"target": "torch.ops.aten.zeros.default", "outputs": [{"as_tensor": {"name": "evil"}}], "metadata": {}}
        node["inputs"] = [{"name": "size", "arg": {"as_ints": [1 << 20, 1 << 20]}, "kind": 1}]
        program["graph_module"]["graph"]["nodes"].insert(0, node)

    assert "bytes" in refused(edit_json(static, bomb))


def test_endless_arithmetic_is_refused(dynamic: bytes) -> None:
    def bomb(program: Any) -> None:
        nodes = program["graph_module"]["graph"]["nodes"]
        size = [
            {"name": "self", "arg": {"as_tensor": {"name": "x"}}, "kind": 1},
            {"name": "dim", "arg": as_int(0), "kind": 1},
        ]
        chain = [
            {"target": "torch.ops.aten.sym_size.int", "inputs": size, "outputs": [{"as_sym_int": {"as_name": "n0"}}]}
        ]
        for step in range(200):
            argument = {"name": "", "arg": {"as_sym_int": {"as_name": f"n{step}"}}, "kind": 1}
            output = {"as_sym_int": {"as_name": f"n{step + 1}"}}
            chain.append({"target": "_operator.mul", "inputs": [argument, argument], "outputs": [output]})
        nodes[:0] = chain

    assert "size" in refused(edit_json(dynamic, bomb))


def test_terminal_escapes_do_not_reach_the_message(static: bytes) -> None:
    message = refused(edit(static, lambda records: records.update({"evil\x1b[2J\u202e": b""})))
    assert message.isascii()
    assert message.isprintable()


# ---------------------------------------------------------------- files that are not programs


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


# ---------------------------------------------------------------- programs that are not image classifiers


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
        pytest.param(lambda m, x: torch.rand(1) + x.mean((2, 3)), "not on the list", id="random"),
        pytest.param(lambda m, x: x.mean((2, 3)) / x.max(), "depends on the others", id="batch-maximum"),
        pytest.param(lambda m, x: x.mean((0, 2, 3)).view(1, 3), "every batch size", id="batch-mean"),
        pytest.param(lambda m, x: x.reshape(3, 16), "every batch size", id="not-a-batch"),
        pytest.param(lambda m, x: x.mean((2, 3)) / 0, "not finite", id="not-finite"),
        pytest.param(lambda m, x: x.mean((2, 3)) + m.calls.add_(1), "overwrites its own", id="counts-its-calls"),
    ],
)
def test_unsuitable_program(function: Callable[..., Any], match: str) -> None:
    refused(export(Program(function).eval(), torch.rand(1, 3, 4, 4)), match)


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


# ---------------------------------------------------------------- damage at random


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


# ---------------------------------------------------------------- files


def test_read_file_limits_its_size(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(bytes(11))
    with pytest.raises(InputError, match="limit of 10"):
        read_file(path, limit=10)
