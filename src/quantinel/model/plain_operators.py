"""The operators of torch's functional form in the words that the rest of Quantinel reads.

``ExportedProgram.run_decompositions({})`` writes BatchNorm as an operator of three results, and what is written into a
part of a tensor as a scatter.
"""

from __future__ import annotations

import operator
import sys
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten


def plain_operators(module: fx.GraphModule) -> None:
    """Rewrite in place; what has no plain form stays as it is."""
    for node in list(module.graph.nodes):
        if node.target is aten._native_batch_norm_legit_no_training.default:
            _batch_norm(node)
        elif node.target in (aten.copy.default, aten.fill.Tensor):
            _copy(node)
        elif node.target is aten.slice_scatter.default:
            _slice_scatter(node)
        elif node.target is aten.select_scatter.default:
            _select_scatter(node)


def call_before(before: fx.Node, target: Any, *arguments: Any, value: Tensor | None = None) -> fx.Node:
    """A call placed before a node, with its shape record: ``value`` where an argument has none."""
    with before.graph.inserting_before(before):
        node = before.graph.call_function(target, arguments)
    if value is None:
        value = target(*fx.node.map_arg(arguments, lambda source: source.meta["val"]))
    node.meta["val"] = value
    return node


def _replace(node: fx.Node, by: Any) -> None:
    node.replace_all_uses_with(by)
    node.graph.erase_node(node)


def _batch_norm(node: fx.Node) -> None:
    """The first of the three results is the normalised tensor; the others are empty in evaluation mode."""
    image, weight, bias, mean, variance, momentum, epsilon = node.args
    with node.graph.inserting_before(node):
        plain = node.graph.call_function(
            aten.batch_norm.default, (image, weight, bias, mean, variance, False, momentum, epsilon, False)
        )
    for user in list(node.users):
        if user.target is operator.getitem and user.args[1] == 0:
            plain.meta.update(user.meta)
            user.replace_all_uses_with(plain)


def _copy(node: fx.Node) -> None:
    """What is written over a whole tensor, in the shape of that tensor."""
    old, new = node.args[:2]
    if not (isinstance(old, fx.Node) and isinstance(new, fx.Node)):
        return
    old_value, new_value = old.meta["val"], new.meta["val"]
    if old_value.dtype != new_value.dtype:
        return
    if str(old_value.shape) == str(new_value.shape):  # as text: comparing free sizes would fix them
        _replace(node, new)
    else:
        _replace(node, call_before(node, aten.expand_as.default, new, old))


def _slice_scatter(node: fx.Node) -> None:
    arguments: tuple[Any, ...] = (*node.args, *(0, None, None, 1)[len(node.args) - 2 :])
    old, new, dim, start, end, step = arguments
    if step != 1 or node.kwargs:
        return
    start, end = 0 if start is None else start, sys.maxsize if end is None else end
    if start == 0 and isinstance(end, int) and end == sys.maxsize:
        _replace(node, new)
    else:
        _concatenate(node, old, new, dim, start, end)


def _select_scatter(node: fx.Node) -> None:
    old, new, dim, index = node.args
    size = old.meta["val"].shape[dim]  # type: ignore[union-attr]
    if isinstance(index, int) and isinstance(size, int):
        start = index % size
        _concatenate(node, old, call_before(node, aten.unsqueeze.default, new, dim), dim, start, start + 1)


def _concatenate(node: fx.Node, old: Any, new: Any, dim: Any, start: Any, end: Any) -> None:
    """What stays before ``start`` and from ``end`` on, with what is new in between; free sizes stay as they are."""
    size = old.meta["val"].shape[dim]
    if not all(isinstance(number, int) for number in (size, start, end)):
        return
    start, end, _ = slice(start, end).indices(size)
    parts = [new]
    if start > 0:
        parts.insert(0, call_before(node, aten.slice.Tensor, old, dim, 0, start))
    if end < size:
        parts.append(call_before(node, aten.slice.Tensor, old, dim, end, size))
    _replace(node, new if len(parts) == 1 else call_before(node, aten.cat.default, parts, dim))
