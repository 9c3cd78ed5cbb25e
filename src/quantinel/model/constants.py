"""What does not depend on the images is computed once, and products with stored matrices become linear layers.

A weight that the model computes from its parameters (weight standardisation, spectral or weight
normalisation, a transposed matrix) is then an ordinary stored weight: it is quantized, audited and counted like
any other, instead of staying in float unseen.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, fx

from quantinel.model.graph import LINEAR, aten

_MAX_ELEMENTS = 1 << 26
_DTYPES = (torch.float32, torch.int64, torch.bool)
_PARAMETRIZED = re.compile(r"\.?parametrizations\.(\w+)\.original\d*$")


def fold_constants(module: fx.GraphModule) -> None:
    """Replace, in place, every part of the graph that no image reaches by its value.

    Args:
        module: flat graph module whose parameters are buffers.
    """
    values = _constants(module)
    for node, value in values.items():
        if node.op == "get_attr":
            node.meta["val"] = value
            node.meta["path"] = _readable(str(node.meta.get("path", node.target)))
        elif isinstance(value, Tensor) and value.dtype in _DTYPES and any(user not in values for user in node.users):
            name = _unused(module, f"{node.name}_constant")
            module.register_buffer(name, value.clone(memory_format=torch.contiguous_format))
            with module.graph.inserting_before(node):
                stored = module.graph.get_attr(name)
            stored.meta["val"] = value
            stored.meta["path"] = _origin(node) or name
            node.replace_all_uses_with(stored, delete_user_cb=lambda user: user not in values)
    _linear_products(module)
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()


@torch.no_grad()
def _constants(module: fx.GraphModule) -> dict[fx.Node, Any]:
    """Values of all nodes that depend on stored tensors only."""
    values: dict[fx.Node, Any] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            values[node] = module.get_buffer(str(node.target))
        elif node.op == "call_function" and all(source in values for source in node.all_input_nodes):
            if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
                continue
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            value = node.target(*args, **kwargs)
            if not isinstance(value, Tensor) or value.numel() <= _MAX_ELEMENTS:
                values[node] = value
    return values


def _origin(node: fx.Node) -> str | None:
    """Path of the parameter that a constant was computed from."""
    while node.all_input_nodes:
        node = node.all_input_nodes[0]
    return str(node.meta["path"]) if "path" in node.meta else None


def _readable(path: str) -> str:
    """``conv.parametrizations.weight.original0`` is the weight of ``conv``."""
    match = _PARAMETRIZED.search(path)
    return path if match is None else f"{path[: match.start()]}.{match[1]}".lstrip(".")


def _unused(module: fx.GraphModule, name: str) -> str:
    candidate, suffix = name, 1
    while hasattr(module, candidate):
        candidate, suffix = f"{name}_{suffix}", suffix + 1
    return candidate


def _linear_products(module: fx.GraphModule) -> None:
    """``x @ W`` and ``addmm(b, x, W)`` with a stored matrix W are linear layers."""
    for node in list(module.graph.nodes):
        if node.op != "call_function":
            continue
        bias: Any = None
        if node.target in (aten.matmul.default, aten.mm.default):
            x, weight = node.args
        elif node.target is aten.addmm.default and not node.kwargs:
            bias, x, weight = node.args
            if not _is_stored(bias, 1):
                continue
        else:
            continue
        if not _is_stored(weight, 2) or not isinstance(x, fx.Node) or x.op == "get_attr":
            continue
        if bias is not None and bias.meta["val"].shape[0] != weight.meta["val"].shape[1]:
            continue
        name = _unused(module, f"{weight.target}_transposed")
        module.register_buffer(name, weight.meta["val"].t().contiguous())
        with module.graph.inserting_before(node):
            stored = module.graph.get_attr(name)
        stored.meta.update(val=module.get_buffer(name), path=weight.meta.get("path", name))
        node.target, node.args = LINEAR, (x, stored, bias)


def _is_stored(node: object, dimensions: int) -> bool:
    return (
        isinstance(node, fx.Node)
        and node.op == "get_attr"
        and node.meta["val"].ndim == dimensions
        and node.meta["val"].dtype is torch.float32
    )
