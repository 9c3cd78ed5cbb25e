"""Exports of networks that differ in their weights alone are made once: torch.export took two fifths of all test time.

`trace` holds every graph against the network itself, with the network's own weights, so that a graph that does not
belong to it is refused there. Only networks made of torch's and Quantinel's own layers are remembered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn

from quantinel.model import graph

_OWN = ("torch.nn.modules.", "quantinel.model.")
_PLAIN = (bool, int, float, str, type(None))
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

Export = Callable[[nn.Module, Tensor], fx.GraphModule]


def remembering(export: Export = graph._export) -> Export:
    """The same function; a structure that it has seen gets that graph again, with the weights of now.

    `trace` copies what it gets before anything else.
    """
    seen: dict[Any, fx.GraphModule] = {}

    def exported(module: nn.Module, example: Tensor) -> fx.GraphModule:
        key = _structure(module, example)
        if key is None:
            return export(module, example)
        if key not in seen:
            made = export(module, example)
            if not _read(made) <= _tensors(module).keys():
                return made
            seen[key] = made
        again, tensors = seen[key], _tensors(module)
        for name in _read(again):
            parent, _, leaf = name.rpartition(".")
            setattr(again.get_submodule(parent), leaf, tensors[name])
        return again

    return exported


def _read(module: fx.GraphModule) -> set[str]:
    return {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def _structure(module: nn.Module, example: Tensor) -> Any:
    """Everything about a network but the values of its tensors; None where that cannot be said."""
    first: dict[int, str] = {}
    layers: list[Any] = [tuple(example.shape)]
    for name, layer in module.named_modules(remove_duplicate=False):
        kind = type(layer)
        attributes = {key: value for key, value in vars(layer).items() if not key.startswith("_")}
        if not kind.__module__.startswith(_OWN) or any(getattr(layer, hooks) for hooks in _HOOKS):
            return None
        if not all(_plain(value) for value in attributes.values()):
            return None
        layers.append((name, kind, first.setdefault(id(layer), name), repr(sorted(attributes.items()))))
    for name, tensor in _tensors(module).items():
        layers.append((name, tuple(tensor.shape), tensor.dtype, type(tensor), first.setdefault(id(tensor), name)))
    return tuple(layers)


def _plain(value: Any) -> bool:
    return all(map(_plain, value)) if isinstance(value, tuple | list) else isinstance(value, _PLAIN)
