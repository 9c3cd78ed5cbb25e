"""From the JSON of a ``torch.export`` program to a graph of listed operators, evaluating nothing.

`build_graph` walks the nodes of ``models/*.json`` (schema 8, torch 2.9 and later) and makes a graph module.
An operator is found by its name in a list (`archive_operators`), never by following attributes; names of nodes
are chosen anew; shapes, symbolic expressions, guards and stack traces in the file are not used (`archive_text`
says what is done with them).
"""

from __future__ import annotations

import keyword
import math
import operator
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from quantinel.errors import InputError, UnsupportedError
from quantinel.model.archive_operators import CHECKS, OPERATORS, SYMBOLIC
from quantinel.model.archive_text import refuse_code, shown

MAX_NODES = 100_000
_SCHEMA, _OPSET = 8, 10

DTYPES: dict[int, torch.dtype] = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16,
    7: torch.float32, 8: torch.float64, 12: torch.bool, 13: torch.bfloat16,
}  # fmt: skip
"""Codes of the schema's ``ScalarType``, as far as image models use them."""

Sizes = tuple[int | None, int, int, int]
"""(N, C, H, W) of an input; N is None when it is free."""

_MEMORY_FORMATS = {1: torch.contiguous_format, 2: torch.channels_last, 4: torch.preserve_format}

_STRING = re.compile(r"[A-Za-z0-9_,.> -]{0,128}")


def build_graph(program: Mapping[str, Any], tensors: Mapping[str, tuple[Tensor, bool]]) -> tuple[fx.GraphModule, Sizes]:
    """The program as a graph module with one placeholder, and (N or None, C, H, W) of its input.

    Args:
        program: parsed ``models/*.json``.
        tensors: {name: (tensor, is it a parameter)}.

    Raises:
        InputError: it is hostile, or not an image model.
        UnsupportedError: it calls an operator of ATen that is not listed.
        KeyError, TypeError, ValueError and others: it does not follow the schema.
    """
    major, opsets = program["schema_version"]["major"], program["opset_version"]
    known = all(name == "aten" and 1 <= int(version) <= _OPSET for name, version in opsets.items())
    if major != _SCHEMA or not known:
        raise InputError(
            f"its schema {shown(major)} or operator sets {shown(opsets)} are unknown; save it with a torch "
            f"version that writes schema {_SCHEMA} and aten {_OPSET} (2.9 to 2.13 do)"
        )
    refuse_code(program)
    content = program["graph_module"]
    if len(content["graph"]["nodes"]) > MAX_NODES:
        raise InputError(f"it has more than {MAX_NODES} operators; is it an image classifier?")
    reader = _GraphReader(tensors)
    image = reader.inputs(content["signature"]["input_specs"])
    for node in content["graph"]["nodes"]:
        reader.node(node)
    module = reader.finish(content["signature"]["output_specs"])
    return module, _image_sizes(content["graph"]["tensor_values"][image])


def _image_sizes(meta: Mapping[str, Any]) -> Sizes:
    sizes: list[Any] = []
    for size in meta["sizes"]:  # a free size counts as in the example that was exported
        sizes.append(size["as_int"] if "as_int" in size else (size["as_expr"]["hint"] or {}).get("as_int"))
    batch = meta["sizes"][0].get("as_int") if sizes else None
    plain = len(sizes) == 4 and all(type(size) is int and 0 < size <= 1 << 16 for size in sizes[1:])
    plain = plain and (batch is None or (type(batch) is int and 0 < batch <= 1 << 12))
    dtype = DTYPES.get(meta["dtype"])
    if not plain or dtype != torch.float32 or math.prod(sizes[1:]) > 1 << 26:
        raise InputError(
            f"its input is {shown(dtype)} of shape {shown(sizes)}, not a float32 image batch (N, C, H, W); "
            "export a model that takes one"
        )
    return batch, sizes[1], sizes[2], sizes[3]


class _GraphReader:
    """Builds the graph; ``values`` maps the file's names to nodes."""

    def __init__(self, tensors: Mapping[str, tuple[Tensor, bool]]) -> None:
        self.tensors = tensors
        self.root = nn.Module()
        self.graph = fx.Graph()
        self.values: dict[str, fx.Node] = {}

    def inputs(self, specs: list[dict[str, dict[str, Any]]]) -> str:
        """Make the placeholder and the weights; returns the file's name of the image input."""
        images: list[str] = []
        for spec in specs:
            [(kind, content)] = spec.items()
            if kind == "user_input":
                images.append(content["arg"].get("as_tensor", {}).get("name", ""))
        if len(images) != 1 or not images[0]:
            raise InputError(f"it has {len(images)} inputs; export a model with one image input (N, C, H, W)")
        self._define(images[0], self.graph.placeholder("images"))
        for spec in specs:
            [(kind, content)] = spec.items()
            if kind in ("parameter", "buffer", "tensor_constant"):
                self._weight(content["arg"]["name"], content[f"{kind}_name"])
            elif kind != "user_input":
                raise InputError(f"it has an input of kind {shown(kind)}; export a model with one image input")
        return images[0]

    def _define(self, name: str, node: fx.Node) -> None:
        if not isinstance(name, str) or name in self.values:
            raise ValueError(f"{name} is defined twice")
        self.values[name] = node

    def _weight(self, name: str, path: str) -> None:
        *folders, leaf = path.split(".")
        plain = all(
            re.fullmatch(r"[A-Za-z0-9_-]+", part) and not part.startswith("__") and not keyword.iskeyword(part)
            for part in (*folders, leaf)
        )
        if not plain or len(folders) > 64 or hasattr(fx.GraphModule, path.split(".")[0]) or path.startswith("meta."):
            raise InputError(f"a weight has the unusable name {shown(path)}; rename that module and export again")
        tensor, is_parameter = self.tensors[path]
        module = self.root
        for folder in folders:
            if folder not in module._modules:
                module.add_module(folder, nn.Module())
            module = module.get_submodule(folder)
        if is_parameter and leaf not in module._parameters:
            module.register_parameter(leaf, nn.Parameter(tensor, requires_grad=tensor.is_floating_point()))
        elif not is_parameter and leaf not in module._buffers:
            module.register_buffer(leaf, tensor)
        self._define(name, self.graph.get_attr(path))

    def node(self, node: Mapping[str, Any]) -> None:
        """Append one call."""
        target = node["target"]
        match = re.fullmatch(r"torch\.ops\.aten\.(\w+)\.(\w+)", target)
        if match and match[1] in CHECKS:
            return
        if target in SYMBOLIC:
            arguments = tuple(self._value(argument["arg"]) for argument in node["inputs"])
            self._outputs(self.graph.call_function(SYMBOLIC[target], arguments), node["outputs"])
            return
        # In-place forms carry a trailing underscore.
        if match is None or (match[1] not in OPERATORS and match[1].removesuffix("_") not in OPERATORS):
            hint = "export a plain image classifier, without run_decompositions()"
            if "quantized" in target:
                hint = "the program is already quantized, export the float model"
            if target.startswith("torch.ops.higher_order."):
                hint = (
                    "give the model itself instead of this file, or remove torch.no_grad(), torch.autocast and control "
                    "flow from its forward and export it again"
                )
            # What is no computation was put there by somebody; the rest ends as a module of the same operators does.
            attack = match is None or match[1].startswith("__") or match[1] == "from_file"
            message = f"operator {shown(target)} is not on the list of allowed operators; {hint}"
            raise InputError(message) if attack else UnsupportedError(message)
        # _unsafe_view hides that it shares memory, which the check for overwritten weights relies on.
        packet = getattr(torch.ops.aten, "view" if match[1] == "_unsafe_view" else match[1], None)
        if packet is None or match[2] not in packet.overloads():
            raise InputError(f"operator {shown(target)} does not exist in torch {torch.__version__}; export it again")
        function = getattr(packet, match[2])
        changes_shape = torch.Tag.inplace_view in function.tags and match[1] != "detach_"
        if function._schema.is_mutable and (changes_shape or not match[1].endswith("_")):
            raise InputError(f"operator {shown(target)} changes other tensors; export a plain image classifier")
        arguments, options = self._arguments(function._schema.arguments, node["inputs"])
        self._outputs(self.graph.call_function(function, arguments, options), node["outputs"])

    def _arguments(self, schema: Any, inputs: list[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given = {argument["name"]: self._value(argument["arg"]) for argument in inputs}
        if given.get("train") is True or given.get("dropout_p"):
            raise InputError("it was exported in training mode; call model.eval() before torch.export.export")
        positional: list[Any] = []
        options: dict[str, Any] = {}
        gap = False  # after an argument that is left at its default, the next ones go by keyword
        for argument in schema:
            if argument.name not in given:
                gap = True
            elif argument.kwarg_only or gap:
                options[argument.name] = given.pop(argument.name)
            else:
                positional.append(given.pop(argument.name))
        if given:
            raise ValueError(f"unknown arguments {list(given)}")
        return tuple(positional), options

    def _value(self, argument: Mapping[str, Any]) -> Any:
        """A node argument: a node, a plain value, or a list of them."""
        [(kind, content)] = argument.items()
        if kind in ("as_none", "as_optional_tensor") and (content is True or "as_none" in content):
            return None
        if kind in ("as_tensor", "as_optional_tensor"):
            return self.values[content.get("as_tensor", content)["name"]]
        if kind in ("as_tensors", "as_optional_tensors"):
            wrapped = [item if kind == "as_optional_tensors" else {"as_tensor": item} for item in content]
            return [self._value(item) for item in wrapped]
        if kind in ("as_sym_int", "as_sym_float", "as_sym_bool"):
            [(what, item)] = content.items()
            return self.values[item] if what == "as_name" else self._value({what: item})
        if kind in ("as_sym_ints", "as_sym_floats", "as_sym_bools"):
            return [self._value({kind.removesuffix("s"): item}) for item in content]
        if kind in ("as_ints", "as_floats", "as_bools"):
            return [self._value({kind.removesuffix("s"): item}) for item in content]
        if kind == "as_int" and type(content) is int and abs(content) < 1 << 63:
            return content
        if kind == "as_float" and (type(content) in (int, float) or content in ("Infinity", "-Infinity", "NaN")):
            return float(content)
        if kind == "as_bool" and type(content) is bool:
            return content
        if kind == "as_string" and _STRING.fullmatch(content):
            return content
        if kind == "as_scalar_type":
            return DTYPES[content]
        if kind == "as_memory_format":
            return _MEMORY_FORMATS[content]
        if kind == "as_layout" and content == 7:
            return torch.strided
        if kind == "as_device" and re.fullmatch(r"[a-z]+", content["type"]):
            return torch.device("cpu")  # wherever it was exported; the caller moves the module
        raise InputError(f"an operator has an argument of kind {shown(kind)}, which is not allowed; export it again")

    def _outputs(self, call: fx.Node, outputs: list[dict[str, Any]]) -> None:
        """Name what a call returns; several values are taken apart with getitem."""
        if len(outputs) == 1 and "as_tensors" in outputs[0]:
            outputs = [{"as_tensor": item} for item in outputs[0]["as_tensors"]]
        elif len(outputs) == 1:
            self._define_output(outputs[0], call)
            return
        for index, output in enumerate(outputs):
            self._define_output(output, self.graph.call_function(operator.getitem, (call, index)))

    def _define_output(self, output: dict[str, Any], node: fx.Node) -> None:
        [(kind, content)] = output.items()
        if kind == "as_tensor":
            self._define(content["name"], node)
        elif kind in ("as_sym_int", "as_sym_float", "as_sym_bool"):
            self._define(content["as_name"], node)
        elif kind != "as_none":
            raise InputError(f"an operator returns a {shown(kind)}, which is not allowed; export it again")

    def finish(self, specs: list[dict[str, Any]]) -> fx.GraphModule:
        """Close the graph with its one output."""
        results = [content["arg"] for spec in specs for kind, content in spec.items() if kind == "user_output"]
        kinds = {kind for spec in specs for kind in spec}
        # A buffer update (statistics in training) is left out: an audited model has no memory between calls.
        if kinds - {"user_output", "buffer_mutation"}:
            raise InputError(
                f"it changes its inputs or parameters ({shown(sorted(kinds))}); export the eval-mode model"
            )
        if len(results) != 1 or "as_tensor" not in results[0]:
            raise InputError(f"it has {len(results)} outputs; export a model that returns one tensor of logits")
        self.graph.output(self.values[results[0]["as_tensor"]["name"]])
        nodes = list(self.graph.nodes)
        if any(getattr(getattr(node.target, "_schema", None), "is_mutable", False) for node in nodes):
            images = nodes[0]  # in-place operators must not reach the caller's images
            with self.graph.inserting_after(images):
                copy = self.graph.call_function(torch.ops.aten.clone.default, (images,))
            images.replace_all_uses_with(copy, delete_user_cb=lambda user: user is not copy)
        for node in reversed(nodes):
            if node.op == "get_attr" and not node.users:
                self.graph.erase_node(node)
        self.graph.lint()
        return fx.GraphModule(self.root, self.graph, class_name="ExportedProgram").eval()
