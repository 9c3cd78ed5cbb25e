"""Regions of a program in another autograd or autocast mode, written into the graph around them.

``torch.export`` keeps ``with torch.no_grad():`` and the like as graphs of their own, wherever the mode differs from
that of whoever exports. Gradients play no part in evaluation, and autocast that is switched off computes as written:
without such regions the graph is the same whatever the caller's mode is. Autocast that is switched on computes
otherwise than float32, and is refused.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from quantinel.errors import UnsupportedError

_GRAD_MODE = torch.ops.higher_order.wrap_with_set_grad_enabled
_AUTOCAST = torch.ops.higher_order.wrap_with_autocast
_SETTINGS = {_GRAD_MODE: 1, _AUTOCAST: 4}
"""How many arguments of a region say its mode; its graph and the inputs of that graph follow."""


def inline_modes(program: ExportedProgram) -> None:
    """Replace, in place, every such region by its operators.

    Raises:
        UnsupportedError: autocast is switched on in a region.
    """
    for old, new in _inline(program.graph_module).items():
        program.graph_signature.replace_all_uses(old, new)
    program.graph_module.recompile()


def _inline(module: fx.GraphModule) -> dict[str, str]:
    """Write out the regions of a graph; returns by which node the results of each are now known.

    A region that holds a graph of another kind stays, and is refused with that graph.
    """
    names: dict[str, str] = {}
    for node in list(module.graph.nodes):
        if node.target not in _SETTINGS:
            continue
        _check_autocast(node)
        reference, *inputs = node.args[_SETTINGS[node.target] :]
        region: Any = module.get_submodule(reference.target)
        _inline(region)
        if any(inner.op == "get_attr" for inner in region.graph.nodes):
            continue
        results = _copy(region.graph, inputs, node)
        for reader in list(node.users):
            assert reader.target is operator.getitem
            result = results[reader.args[1]]
            names[reader.name] = result.name
            reader.replace_all_uses_with(result)
            module.graph.erase_node(reader)
        module.graph.erase_node(node)
        module.graph.erase_node(reference)
        module.delete_submodule(reference.target)
    return names


def _check_autocast(node: fx.Node) -> None:
    if node.target is _AUTOCAST and node.args[2]:
        device, dtype = node.args[:2]
        raise UnsupportedError(
            f"the model computes in {dtype} under torch.autocast({device!r}); remove autocast from its forward, or "
            "give it enabled=False, so that the float network is one in float32"
        )


def _copy(region: fx.Graph, inputs: list[Any], before: fx.Node) -> Any:
    """Copy a region's nodes in front of a node; returns what the region returns."""
    placeholders = [node for node in region.nodes if node.op == "placeholder"]
    values = dict(zip(placeholders, inputs, strict=True))
    with before.graph.inserting_before(before):
        return before.graph.graph_copy(region, values)
