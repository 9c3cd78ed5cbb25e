"""Reading .pt2 archives: nothing hostile runs, and nothing eats memory."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.model.archive_files import CONSTANTS, MODEL, SAMPLES, WEIGHTS, Records, edit, edit_json, refused


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
