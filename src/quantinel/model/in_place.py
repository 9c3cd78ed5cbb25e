"""Operators that overwrite their input, rewritten as operators that return a new tensor.

Overwriting a tensor changes every other view of its memory. Where nothing reads such a view afterwards, ``relu_``
becomes ``relu`` and the graph stays as it was exported; otherwise torch's own functional form of the program is
used, in which every view is made again. What neither covers is refused by name: dropping one overwritten view would
make another network of it.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves

from quantinel.errors import UnsupportedError
from quantinel.model.plain_operators import plain_operators

aten = torch.ops.aten


def functional_module(program: ExportedProgram, example: Tensor) -> fx.GraphModule:
    """The program's graph without in-place operators.

    Args:
        program: exported with one image input, without regions of another mode (`modes`).
        example: images to find out with which tensors share memory.

    Raises:
        UnsupportedError: it overwrites a stored tensor, or something that torch cannot make functional.
    """
    module: Any = program.module(check_guards=False)
    _check_blocks(module)
    unclear = _unclear(module, example)
    if unclear is None:
        for node in list(module.graph.nodes):
            if _overwrites(node):
                _make_functional(node)
    else:
        try:
            module = program.run_decompositions({}).module(check_guards=False)
        except Exception as error:  # the exporter raises anything, including its own internal classes
            raise _refusal(unclear) from error
        _drop_writes_to_images(module)
        plain_operators(module)
    module.graph.eliminate_dead_code()
    for node in module.graph.nodes:
        if _overwrites(node):
            raise _refusal(node)
    module.recompile()
    return module  # type: ignore[no-any-return]


def _refusal(node: fx.Node, how: str = "") -> UnsupportedError:
    return UnsupportedError(
        f"operator {node.target} ({node.name}) overwrites memory that other tensors share{how}, and cannot be "
        "rewritten; use the form that returns a new tensor (y = y + b in place of y.add_(b)), torch.cat or torch.where"
    )


def _overwrites(node: fx.Node) -> bool:
    return node.op == "call_function" and getattr(getattr(node.target, "_schema", None), "is_mutable", False)


def _check_blocks(module: fx.GraphModule) -> None:
    """Refuse writes that the graph itself does not show.

    Raises:
        UnsupportedError: a block such as a branch, which is a graph of its own, overwrites a tensor; or ``tensor.data``
            is set, which the exporter does not follow.
    """
    for block in module.modules():
        for node in block.graph.nodes if isinstance(block, fx.GraphModule) else ():
            if block is not module and _overwrites(node):
                raise _refusal(node, " inside a block that is a graph of its own")
            if node.target is aten._has_compatible_shallow_copy_type.default:
                raise UnsupportedError(
                    f"the model sets the data of a tensor ({node.name}), which torch.export does not follow; use the "
                    "other tensor itself (z = y in place of z.data = y)"
                )


def _functional_form(node: fx.Node) -> Any:
    """``relu`` for ``relu_``; None where there is none."""
    assert isinstance(node.target, torch._ops.OpOverload)
    schema = node.target._schema
    written = [argument for argument in schema.arguments if argument.alias_info and argument.alias_info.is_write]
    if not (schema.name.startswith("aten::") and schema.name.endswith("_") and len(written) == 1):
        return None
    if written[0].name != schema.arguments[0].name or not node.args or not isinstance(node.args[0], fx.Node):
        return None
    packet = getattr(aten, schema.name[len("aten::") : -1], None)
    return getattr(packet, schema.overload_name or "default", None)


def _make_functional(node: fx.Node) -> None:
    """Later readers of the tensor that was overwritten read the result instead."""
    overwritten = node.args[0]
    assert isinstance(overwritten, fx.Node)
    node.target = _functional_form(node)
    order = {other: index for index, other in enumerate(node.graph.nodes)}
    for user in list(overwritten.users):
        if order[user] > order[node]:
            user.replace_input_with(overwritten, node)


class _Memory(fx.Interpreter):
    """Runs a graph on copies of its stored tensors and notes the memory that every value lies in."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)  # freed memory would be given out twice
        self.memory: dict[fx.Node, set[int]] = {}

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        value = super().get_attr(target, args, kwargs)
        return value.clone() if isinstance(value, Tensor) else value

    def run_node(self, node: fx.Node) -> Any:
        result = super().run_node(node)
        leaves = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.memory[node] = {leaf.untyped_storage()._cdata for leaf in leaves}
        return result


def _unclear(module: fx.GraphModule, example: Tensor) -> fx.Node | None:
    """The first in-place operator after which a tensor is read that shares memory with the overwritten one.

    Raises:
        UnsupportedError: such a tensor came out of an operator that is not declared to return a view, so that torch's
            functional form takes it for a copy.
    """
    order: dict[fx.Node, int] = {node: index for index, node in enumerate(module.graph.nodes)}
    writers = [node for node in order if _overwrites(node)]
    if not writers:
        return None
    memory = _memory(module, example)
    unclear = next((writer for writer in writers if _functional_form(writer) is None), None)
    same: dict[fx.Node, fx.Node] = {}  # an in-place operator returns the tensor that it was given
    for writer in writers if unclear is None else ():
        target = writer.args[0]
        assert isinstance(target, fx.Node)
        same[writer] = same.get(target, target)
        others = [node for node in order if memory[node] & memory[writer] and same.get(node, node) is not same[writer]]
        read_later = [
            node
            for node in others
            if order[node] < order[writer] and any(order[user] > order[writer] for user in node.users)
        ]
        if read_later or any(node.op == "get_attr" for node in (target, *others)):
            unclear = writer
            break
    if unclear is not None:
        overwritten = set[int]().union(*(memory[writer] for writer in writers))
        for node in order:
            if memory[node] & overwritten and _is_undeclared_view(node, memory):
                raise _refusal(unclear, f" through {node.target}")
    return unclear


def _memory(module: fx.GraphModule, example: Tensor) -> dict[fx.Node, set[int]]:
    """Memory of every value, with that of what it may be a view of.

    Whether a reshape or a change of type makes a copy can depend on the batch; its schema says that it can be a view.
    """
    interpreter = _Memory(module)
    with torch.no_grad():
        interpreter.run(example.clone())
    memory = interpreter.memory
    for node in module.graph.nodes:
        for argument, value in _declared(node):
            if argument.alias_info is not None and isinstance(value, fx.Node):
                memory[node] = memory[node] | memory[value]
    return memory


def _declared(node: fx.Node) -> list[tuple[Any, Any]]:
    """Arguments of a call by position, with what its schema says about them."""
    schema = getattr(node.target, "_schema", None) if node.op == "call_function" else None
    return [] if schema is None else list(zip(schema.arguments, node.args, strict=False))


def _is_undeclared_view(node: fx.Node, memory: dict[fx.Node, set[int]]) -> bool:
    if node.op != "call_function" or node.target is operator.getitem:
        return False
    if any(argument.alias_info is not None for argument, _ in _declared(node)):
        return False
    return any(memory[source] & memory[node] for source in node.all_input_nodes)


def _drop_writes_to_images(module: fx.GraphModule) -> None:
    """What the functional form writes back at its end: images are the caller's own, stored tensors are refused."""
    for node in list(module.graph.nodes):
        if node.target is not aten.copy_.default:
            continue
        target = node.args[0]
        if isinstance(target, fx.Node) and target.op == "get_attr":
            raise UnsupportedError(
                f"the model overwrites its own tensor {target.target} when it runs, so that its answers depend on what "
                "it saw before; keep nothing between calls"
            )
        if isinstance(target, fx.Node) and target.op == "placeholder":
            node.replace_all_uses_with(node.args[1])
            module.graph.erase_node(node)
