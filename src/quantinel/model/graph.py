"""From any module to one flat graph of ATen operators, BatchNorm (unless asked otherwise) and LayerNorm folded.

Order, enforced here: eval -> export -> no regions of another mode (`modes`) -> functional operators (`in_place`) ->
fold -> nothing rewrites weights any more.
The export is non-strict (tracing), which gives the same graphs as strict mode for the models of the zoo,
in a fraction of the time, and takes models that strict mode refuses.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from quantinel.errors import InputError, UnsupportedError, first_line
from quantinel.model.batch_norm import FoldedBatchNorm
from quantinel.model.in_place import functional_module
from quantinel.model.modes import inline_modes
from quantinel.model.same_answers import check_any_batch, check_batches, check_same_answers, differ

aten = torch.ops.aten

CONVOLUTIONS = (aten.conv2d.default, aten.conv2d.padding, aten.conv1d.default, aten.conv1d.padding)
LINEAR = aten.linear.default

_NORMALISATIONS = (aten.batch_norm.default, aten.layer_norm.default)

_IDENTITIES = (
    aten.dropout.default, aten.feature_dropout.default, aten.contiguous.default, aten.clone.default,
    aten.alias.default, aten.detach.default, aten.lift_fresh_copy.default, aten.alpha_dropout.default,
)  # fmt: skip
"""Operators that change nothing in evaluation mode, once nothing is overwritten in place."""

_CHECKS = ("_assert_tensor_metadata", "_assert_scalar", "sym_constrain_range", "_assert_async")


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer whose weight is quantized.

    Attributes:
        name: path of the module it came from, e.g. ``layer1.0.conv1``; "#2" and so on behind it for further calls.
        node: name of its node in the graph.
        kind: "conv" or "linear".
        weight: buffer that holds the weight, (O, I / groups, ...) or (O, I).
        bias: buffer that holds the bias (O,), or None.
        groups: of a grouped convolution; 1 otherwise.
        kernel: of a convolution that folding made a linear layer; () otherwise.
    """

    name: str
    node: str
    kind: Literal["conv", "linear"]
    weight: str
    bias: str | None
    groups: int
    kernel: tuple[int, ...] = ()

    @property
    def is_convolution(self) -> bool:
        """Whether the module has a convolution there, as kind "linear" or not."""
        return self.kind == "conv" or bool(self.kernel)

    @property
    def module(self) -> str:
        """Path of the module alone: the same for every call of a module that is called several times."""
        return self.name.partition("#")[0]


@dataclass(frozen=True)
class FloatGraph:
    """The folded float network.

    Attributes:
        module: graph module with one input (N, C, H, W) float32 and one output (N, K); its buffers are copies.
        layers: in execution order.
        defined: the same layers in the order in which the module defines their weights.
        input_shape: (C, H, W).
        num_classes: K.
        batch_norms: by layer name, what was folded into it or is behind it; a layer without BatchNorm is absent.
        layer_norms: by layer name, path of the module whose affine part was folded into it from before it.
    """

    module: fx.GraphModule
    layers: tuple[Layer, ...]
    defined: tuple[Layer, ...]
    input_shape: tuple[int, int, int]
    num_classes: int
    batch_norms: Mapping[str, FoldedBatchNorm] = field(default_factory=dict)
    layer_norms: Mapping[str, str] = field(default_factory=dict)

    def weight(self, layer: Layer) -> Tensor:
        """Folded float weight of a layer."""
        return self.module.get_buffer(layer.weight)

    def bias(self, layer: Layer) -> Tensor | None:
        """Folded float bias of a layer."""
        return None if layer.bias is None else self.module.get_buffer(layer.bias)

    def node(self, name: str) -> fx.Node:
        """Node by name."""
        found: fx.Node = next(node for node in self.module.graph.nodes if node.name == name)
        return found

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Logits (N, K) of images (N, C, H, W) in [0, 1]."""
        logits: Tensor = self.module(images)
        return logits


def trace(module: nn.Module, input_shape: tuple[int, int, int], *, fold_batch_norm: bool = True) -> FloatGraph:
    """Export, make functional and fold.

    Args:
        module: maps float32 images (N, C, H, W) to logits (N, K); it is not changed.
        input_shape: (C, H, W).
        fold_batch_norm: false leaves BatchNorm as a float operation of its own behind the layer, whose weight is then
            quantized as it was trained; LayerNorm is folded either way.

    Raises:
        UnsupportedError: the module cannot be exported, or holds no convolution or linear layer.
        InputError: folding changed the function (a module whose outputs are not finite, for example).
    """
    from quantinel.model.constants import fold_constants
    from quantinel.model.folding import fold

    module = copy.deepcopy(module).eval().float()
    example = torch.rand(2, *input_shape, generator=torch.Generator().manual_seed(0))
    graph_module = flatten(_export(module, example))
    fold_constants(graph_module)
    expected = module(example.clone())
    if not isinstance(expected, Tensor) or expected.ndim != 2:
        raise UnsupportedError("the model must return one tensor of logits (N, classes); wrap it in a module that does")
    expected = expected.detach()
    if torch.isfinite(expected).all():  # otherwise folding says what is wrong
        check_same_answers(expected, graph_module(example), "random images")
        check_batches(module, example, expected)
    normalised = any(node.target in _NORMALISATIONS for node in graph_module.graph.nodes)
    fold(graph_module, batch_norm=fold_batch_norm)
    actual = graph_module(example)
    if differ(expected, actual):
        raise InputError(
            "folding normalisation layers changed the model's outputs beyond rounding; its statistics are "
            "probably degenerate (not finite, or variances near zero): check the BatchNorm buffers"
            if normalised
            else "the model's outputs are not finite on random images; check its weights"
        )
    layers = find_layers(graph_module)
    if not layers:
        raise UnsupportedError("the model has no convolution or linear layer that could be quantized")
    metas = {node.name: node.meta for node in graph_module.graph.nodes}
    batch_norms = {layer.name: metas[layer.node]["batch_norm"] for layer in layers if "batch_norm" in metas[layer.node]}
    layer_norms = {layer.name: metas[layer.node]["layer_norm"] for layer in layers if "layer_norm" in metas[layer.node]}
    places = _places(module)
    defined = sorted(layers, key=lambda layer: places.get(layer.module, len(places)))
    return FloatGraph(
        graph_module, layers, tuple(defined), input_shape, int(expected.shape[1]), batch_norms, layer_norms
    )


def _places(module: nn.Module) -> dict[str, int]:
    """When the weight of every layer is defined, by the layer's path; all paths of one tensor have one place."""
    first: dict[int, int] = {}
    tensors = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    return {path.removesuffix(".weight"): first.setdefault(id(tensor), len(first)) for path, tensor in tensors}


def _export(module: nn.Module, example: Tensor) -> fx.GraphModule:
    batch = torch.export.Dim.DYNAMIC
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), torch.enable_grad():  # the same names for every caller
            warnings.simplefilter("ignore")
            program = torch.export.export(module, (example,), dynamic_shapes=({0: batch},), strict=False)
            check_any_batch(program)
            inline_modes(program)
            return functional_module(program, example)
    except UnsupportedError:
        raise
    except Exception as error:  # the exporter raises anything, including its own internal classes
        raise UnsupportedError(
            f"torch.export cannot trace this model with a free batch size ({first_line(error)[:200]}); "
            "remove data-dependent control flow, or export it yourself and give the .pt2 file"
        ) from error
    finally:
        logger.setLevel(level)


def flatten(module: fx.GraphModule) -> fx.GraphModule:
    """Copy parameters and buffers of a functional graph into one flat module, drop what does nothing."""
    graph = _plain_copy(module.graph)
    root = nn.Module()
    names: dict[str, str] = {}
    for node in list(graph.nodes):
        if node.op == "get_attr":
            target = str(node.target)
            if target not in names:
                names[target] = _unique(target.replace(".", "_"), root)
                value = _attribute(module, target)
                if not isinstance(value, Tensor):
                    raise UnsupportedError(
                        f"the model uses control flow or a sub-graph ({target}); replace it with plain operators"
                    )
                root.register_buffer(names[target], value.detach().clone().contiguous())
            node.meta["path"] = target
            node.target = names[target]
        elif node.op == "call_module" or _is_check(node):
            if node.op == "call_module" and node.users and node.target != "_guards_fn":
                raise UnsupportedError(f"the model calls a module ({node.target}) that export could not flatten")
            for user in list(node.users):  # only other checks read a check
                graph.erase_node(user)
            graph.erase_node(node)
        elif node.op == "call_function":
            _check_deterministic(node)
            if node.target in _IDENTITIES:
                _replace(graph, node, node.args[0])
            elif node.target is aten.view.default:
                node.target = aten.reshape.default  # without the copies that were dropped, strides may not fit a view
    graph.eliminate_dead_code()
    for node in reversed(list(graph.nodes)):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)
    graph.lint()
    flat = fx.GraphModule(root, graph)
    return flat.eval()


def _plain_copy(source: fx.Graph) -> fx.Graph:
    """Copy the nodes into a graph that returns its tensor directly, without the exporter's pytree wrapping."""
    graph = fx.Graph()
    result = graph.graph_copy(source, {})
    while isinstance(result, list | tuple):
        if len(result) != 1:
            raise UnsupportedError("the model returns several tensors; wrap it in a module that returns the logits")
        result = result[0]
    graph.output(result)
    return graph


def _is_check(node: fx.Node) -> bool:
    return node.op == "call_function" and any(check in str(node.target) for check in _CHECKS)


def _replace(graph: fx.Graph, node: fx.Node, by: Any) -> None:
    node.replace_all_uses_with(by)
    graph.erase_node(node)


def _check_deterministic(node: fx.Node) -> None:
    """Refuse what draws random numbers, such as a dropout that is always on.

    Raises:
        UnsupportedError: it does.
    """
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return
    schema = node.target._schema  # type: ignore[union-attr]
    given = dict(zip((argument.name for argument in schema.arguments), node.args, strict=False)) | dict(node.kwargs)
    switches = {argument.name: argument.default_value for argument in schema.arguments} | given
    if all(switches.get(name, True) for name in ("train", "training", "p", "dropout_p")):
        raise UnsupportedError(
            f"operator {node.target} ({node.name}) draws random numbers in evaluation mode; use nn.Dropout, which "
            "model.eval() switches off, or remove it"
        )


def _attribute(module: nn.Module, path: str) -> Any:
    value: Any = module
    for part in path.split("."):
        value = getattr(value, part)
    return value


def _unique(name: str, root: nn.Module) -> str:
    candidate, suffix = name, 1
    while hasattr(root, candidate):
        candidate, suffix = f"{name}_{suffix}", suffix + 1
    return candidate


def find_layers(module: fx.GraphModule) -> tuple[Layer, ...]:
    """All convolution and linear calls whose weight is a stored tensor, in execution order."""
    found: list[Layer] = []
    seen: dict[str, int] = {}
    for node in module.graph.nodes:
        kind: Literal["conv", "linear"] | None = None
        if node.op == "call_function":
            kind = "conv" if node.target in CONVOLUTIONS else "linear" if node.target is LINEAR else None
        if kind is None or not (isinstance(node.args[1], fx.Node) and node.args[1].op == "get_attr"):
            continue
        weight_node = node.args[1]
        bias_node = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
        bias = str(bias_node.target) if isinstance(bias_node, fx.Node) and bias_node.op == "get_attr" else None
        if bias_node is not None and bias is None:
            continue
        groups = int(node.args[6]) if kind == "conv" and len(node.args) > 6 else 1
        path = str(weight_node.meta.get("path", weight_node.target))
        name = path.removesuffix(".weight") or path
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1:
            name = f"{name}#{seen[name]}"
        kernel = node.meta.get("kernel", ())
        found.append(Layer(name, node.name, kind, str(weight_node.target), bias, groups, kernel))
    return tuple(found)


_PRODUCTS = frozenset([
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "convolution", "linear", "matmul", "mm",
    "bmm", "addmm", "baddbmm", "einsum", "scaled_dot_product_attention",
])  # fmt: skip


def float_products(graph: FloatGraph) -> tuple[list[str], int]:
    """Operators that multiply tensors but are no quantized layer, and how many stored weights they read.

    Returns:
        Sorted names such as ``conv_transpose2d``, and the count of weights (biases not counted).
    """
    layers = {layer.node for layer in graph.layers}
    names: set[str] = set()
    weights = 0
    for node in graph.module.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        name = "" if schema is None else schema.name.removeprefix("aten::")
        if name in _PRODUCTS and node.name not in layers:
            names.add(name)
            stored = [graph.module.get_buffer(str(a.target)) for a in node.all_input_nodes if a.op == "get_attr"]
            weights += sum(tensor.numel() for tensor in stored if tensor.ndim > 1)
    return sorted(names), weights
