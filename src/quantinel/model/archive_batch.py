"""Frees the batch size of an exported program, and proves that every image is treated alone.

Most programs are exported with one image, so 1 is written into their reshapes. Two dry runs without data,
with the fixed batch and with another, show where the batch sits: a reshape whose input differs between the
runs gets the size of the running batch in its place; constants that are broadcast to all images (class
tokens) too. No rule can know every program, so the result must pass a test: three random images in one
batch give the outputs of three batches of one.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import operator
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode

from quantinel.errors import InputError
from quantinel.model.archive_graph import Sizes
from quantinel.model.archive_text import shown

MAX_INTERMEDIATE_BYTES = 2 << 30
_TOLERANCE = 1e-4
_RECIPE = (
    "export it with a free batch: torch.export.export(model.eval(), (two_images,), "
    "dynamic_shapes=({0: torch.export.Dim.AUTO},))"
)
_RESHAPES = ("aten::view", "aten::reshape")
_FACTORIES = (
    "aten::zeros",
    "aten::ones",
    "aten::full",
    "aten::new_zeros",
    "aten::new_ones",
    "aten::new_full",
)

aten = torch.ops.aten


class _NotFreeError(InputError):
    """The program does not work for another batch size."""


def free_batch(build: Callable[[], tuple[fx.GraphModule, Sizes]]) -> tuple[fx.GraphModule, Sizes]:
    """Build the program, free its batch size and test it.

    Args:
        build: makes a fresh graph module with one placeholder, and its (N or None, C, H, W).

    Raises:
        InputError: it cannot run, mixes the images of a batch, overwrites its weights, or is too large.
    """
    module, sizes = build()
    batch, shape = sizes[0], sizes[1:]
    try:
        if batch is None:
            _dry_run(module, (3, *shape))
            _prove(module, shape)
            return module, sizes
        try:
            _free(module, batch, shape, constants=True)
            _prove(module, shape)
        except _NotFreeError:
            module, _ = build()
            _free(module, batch, shape, constants=False)
            _prove(module, shape)
    except _NotFreeError as error:
        raise InputError(f"it does not work for every batch size ({error}); {_RECIPE}") from error
    return module, sizes


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without gradients, and without what torch has to say: it logs a traceback for every operator that fails."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _dry_run(
    module: fx.GraphModule, shape: tuple[int, ...], rewrite: Callable[[fx.Node, Any], None] | None = None
) -> dict[fx.Node, tuple[int, ...]]:
    """Shapes of all tensors for an input of ``shape``, computed without data.

    ``rewrite`` may change the arguments of a node, given the value that it reads first, before it runs.
    """
    values: dict[fx.Node, Any] = {}
    weights = dict(module.named_parameters(remove_duplicate=False))
    weights.update(module.named_buffers(remove_duplicate=False))  # type: ignore[arg-type]
    with _quiet(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for node in list(module.graph.nodes):
            try:
                if node.op == "placeholder":
                    values[node] = torch.empty(shape)
                elif node.op == "get_attr":
                    values[node] = mode.from_tensor(weights[str(node.target)])
                elif node.op == "call_function":
                    if rewrite is not None:
                        first = node.args[0] if node.args else None
                        rewrite(node, values[first] if isinstance(first, fx.Node) else None)
                        for new in node.all_input_nodes:
                            if new not in values:  # arithmetic on the batch size, put in by rewrite
                                values[new] = _call(new, values)
                    values[node] = _call(node, values)
            except InputError:
                raise
            except Exception as error:  # kernels raise whatever they like
                raise _NotFreeError(f"{node.target} fails on images {shape}: {shown(error)}") from error
    return {node: tuple(value.shape) for node, value in values.items() if isinstance(value, Tensor)}


def _call(node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    arguments, options = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
    assert callable(node.target)
    result = node.target(*arguments, **options)
    for value in result if isinstance(result, tuple | list) else (result,):
        if isinstance(value, Tensor) and value.numel() * value.element_size() > MAX_INTERMEDIATE_BYTES:
            raise InputError(
                f"{node.target} makes more than {MAX_INTERMEDIATE_BYTES} bytes out of a few images; is it an "
                "image classifier?"
            )
        if isinstance(value, int) and abs(value) >= 1 << 62:
            raise InputError(f"{node.target} makes a size that no tensor has; is it an image classifier?")
    return result


def _free(module: fx.GraphModule, batch: int, shape: tuple[int, ...], constants: bool) -> None:
    """Write the size of the running batch where the program says ``batch``; in place.

    ``constants`` extends this to tensors that do not depend on the input and are broadcast to the batch.
    """
    graph = module.graph
    before = _dry_run(module, (batch, *shape))
    images = next(iter(graph.nodes))
    with graph.inserting_after(images):
        running = graph.call_function(aten.sym_size.int, (images, 0))

    def rewrite(node: fx.Node, first: Any) -> None:
        name = getattr(getattr(node.target, "_schema", None), "name", "")
        place = 2 if name == "aten::unflatten" else 1 if isinstance(first, Tensor) else 0
        lengths: Any = node.args[place] if len(node.args) > place else None
        if not isinstance(lengths, list | tuple):
            return
        lengths = list(lengths)
        old = before.get(node.args[0], ()) if isinstance(node.args[0], fx.Node) else ()
        new = tuple(first.shape) if isinstance(first, Tensor) else ()
        found: list[int] = []  # places in lengths that hold the batch
        if old != new:
            if name in _RESHAPES:
                lengths = [*before[node]]  # because a -1 could swallow the batch
                found = [_position(old, new, lengths, batch)]
                # Strides that fit a view of one image may not fit one of several.
                node.target = aten.reshape.default
            elif name == "aten::unflatten" and isinstance(dim := node.args[1], int) and old[dim] != new[dim]:
                lengths = [*before[node]][dim % len(old) :][: len(lengths)]
                found = [_position((old[dim],), (new[dim],), lengths, batch)]
            elif name == "aten::expand":
                changed = (dim for dim in range(-len(old), 0) if old[dim] != new[dim])
                found = [dim for dim in changed if lengths[dim] == old[dim]]
        elif constants and lengths and lengths[0] in (batch, -1):
            widens = name == "aten::expand" and before[node][0] == batch and (len(lengths) > len(old) or old[0] == 1)
            if widens or (name in ("aten::repeat", *_FACTORIES) and len(lengths) > 1 and lengths[0] == batch):
                lengths[0], found = batch, [0]
        for dim in found:
            with graph.inserting_before(node):
                factor = lengths[dim] // batch
                lengths[dim] = running if factor == 1 else graph.call_function(operator.mul, (running, factor))
        node.update_arg(place, lengths)

    _dry_run(module, (5 if batch == 3 else 3, *shape), rewrite)
    graph.lint()
    module.recompile()


def _position(old: tuple[int, ...], new: tuple[int, ...], target: list[int], batch: int) -> int:
    """Which length of a reshape to ``target`` holds the batch.

    ``old`` and ``new`` are the lengths of its input with the fixed batch and with another.
    """
    changed = [dim for dim, (a, b) in enumerate(zip(old, new, strict=True)) if a != b]
    if len(changed) != 1 or old[changed[0]] % batch:
        raise _NotFreeError("a reshape mixes the images of a batch")
    after = [math.prod(target[dim + 1 :]) for dim in range(len(target))]
    # Numbers between one image and the next, if the batch is the slow or the fast part of a merged dimension.
    fast = math.prod(old[changed[0] + 1 :])
    slow = old[changed[0]] // batch * fast
    alone = [dim for dim, length in enumerate(target) if length == batch]
    merged = [dim for dim, length in enumerate(target) if length % batch == 0]
    found = [dim for dim in alone if after[dim] == slow] + [dim for dim in alone if after[dim] == fast]
    outer = [dim for dim in merged if after[dim] == fast]
    inner = [dim for dim in merged if target[dim] // batch * after[dim] == slow]
    behind = [dim for dim in merged if after[dim] == slow and dim < len(target) - 1]
    # Heads are merged behind the batch, tokens before it; the last dimension holds features and is kept.
    found += [dim for dim in inner if dim < len(target) - 1] + outer + behind + inner
    if not found:
        raise _NotFreeError("a reshape mixes the images of a batch")
    return found[0]


def _prove(module: fx.GraphModule, shape: tuple[int, ...]) -> None:
    """Three images together give what each gives alone, and the weights stay as they are."""
    images = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))
    state = [*module.parameters(), *module.buffers()]
    versions = [tensor._version for tensor in state]
    try:
        with _quiet():  # not inference_mode, which keeps no version counters
            together = module(images)
            alone = [module(image[None]) for image in images]
    except Exception as error:  # kernels raise whatever they like
        raise _NotFreeError(f"it fails on a batch of one or three: {shown(error)}") from error
    if [tensor._version for tensor in state] != versions:
        raise InputError("it overwrites its own weights while it runs; call model.eval() and export it again")
    if together.shape[:1] != (3,) or any(output.shape != (1, *together.shape[1:]) for output in alone):
        raise _NotFreeError(f"it returns {tuple(together.shape)} for a batch of three")
    single = torch.cat(alone)
    if not torch.isfinite(together).all() or not torch.isfinite(single).all():
        raise InputError("its outputs are not finite on random images in [0, 1]; check the weights")
    difference = float((together - single).abs().max())
    if difference > _TOLERANCE * float(single.abs().max()) and not _alone_in_double(module, images):
        raise _NotFreeError(
            f"the output of an image depends on the others in its batch, by {difference:.3g}; was it exported in "
            "training mode?"
        )


def _alone_in_double(module: fx.GraphModule, images: Tensor) -> bool:
    """Whether the difference is gone in double precision: then it was float32 noise that a deep network magnified."""
    precise, images = copy.deepcopy(module).double(), images.double()
    try:
        with _quiet():
            together = precise(images)
            single = torch.cat([precise(image[None]) for image in images])
    except Exception:  # a program with float32 written into it cannot run in double precision
        return False
    return float((together - single).abs().max()) <= _TOLERANCE**2 * float(single.abs().max())
