"""Nodes of the graph and their values, as a walk through both networks needs them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx

from quantinel.model.graph import Layer, aten


@dataclass
class Lane:
    """Values by node of one set of images, in both networks."""

    floating: dict[fx.Node, Any] = field(default_factory=dict)
    quantized: dict[fx.Node, Any] = field(default_factory=dict)

    def unchanged(self, node: fx.Node) -> bool:
        """Whether both networks have computed the same so far."""
        return all(self.quantized.get(source) is self.floating.get(source) for source in node.all_input_nodes)


def call(node: fx.Node, values: Mapping[fx.Node, Any], weight: Tensor | None = None) -> Any:
    """What a node computes from the values of those before it, a layer with another weight if one is given."""
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda item: values[item])
    if weight is not None:
        args = (args[0], weight, *args[2:])
    return node.target(*args, **kwargs)  # type: ignore[operator]


def source_of(node: fx.Node) -> fx.Node:
    """Where a layer's inputs come from."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source


def residual_connection(node: fx.Node) -> fx.Node | None:
    """The other summand where the only thing that happens to a tensor is an addition to another of its shape."""
    reader = only_reader(node)
    if reader is None or reader.target is not aten.add.Tensor or reader.kwargs.get("alpha", 1) != 1:
        return None
    other = next((item for item in reader.args if item is not node), None)
    if not isinstance(other, fx.Node):
        return None
    shapes = [getattr(item.meta.get("val"), "shape", None) for item in (node, other)]
    return other if shapes[0] is not None and shapes[0] == shapes[1] else None


def only_reader(node: fx.Node) -> fx.Node | None:
    """The node that a value goes to, if it goes to one."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def channel_dimension(layer: Layer, output: Tensor) -> int:
    """Of a layer's outputs."""
    return 1 if layer.kind == "conv" or output.ndim == 2 else -1


def along(values: Tensor, output: Tensor, dimension: int) -> Tensor:
    """One value a channel (O,), shaped so that it can be added to a layer's outputs."""
    shape = [1] * output.ndim
    shape[dimension] = -1
    return values.reshape(shape)
