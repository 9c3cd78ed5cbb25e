"""State dicts: read from safetensors, and fitted to a module strictly, with messages that say what differs."""

from __future__ import annotations

import logging

import safetensors.torch
import torch
from torch import Tensor, nn

from quantinel.errors import InputError
from quantinel.model.archive_text import shown
from quantinel.model.named_models import reason

logger = logging.getLogger(__name__)


def read_safetensors(data: bytes, source: str) -> dict[str, Tensor]:
    """State dict in float32; the library bounds the header and checks every offset."""
    try:
        state = safetensors.torch.load(data)
    except Exception as error:  # the library raises its own errors, KeyError, ValueError and more
        raise InputError(
            f"{source} is not a valid safetensors file ({reason(error)}); download or save it again"
        ) from error
    if not state:
        raise InputError(f"{source} holds no tensors; save model.state_dict() again")
    converted = {str(tensor.dtype) for tensor in state.values() if tensor.dtype in (torch.float16, torch.bfloat16)}
    if converted:
        logger.warning("%s: %s weights are converted to float32", source, " and ".join(sorted(converted)))
    for name, tensor in state.items():
        if tensor.dtype in (torch.float16, torch.bfloat16, torch.float64):
            state[name] = tensor.float()
    return state


def strip_prefix(state: dict[str, Tensor], expected: set[str]) -> dict[str, Tensor]:
    """Without the wrapper names (``module.``, ``model.``) that ALL keys share, where that makes them fit."""
    best = state
    while state and set(state) != expected:
        prefix = next(iter(state)).partition(".")[0] + "."
        if not all(name.startswith(prefix) for name in state) or all(name.startswith(prefix) for name in expected):
            break
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
        if len(expected & set(state)) > len(expected & set(best)):
            best = state
    return best


def _with_tied(expected: dict[str, Tensor], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """With every name of a parameter that the module has under several names; ``save_model`` writes one of them."""

    def place(tensor: Tensor) -> tuple[object, ...]:
        return tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.shape, tensor.stride()

    held = {place(tensor): state[name] for name, tensor in expected.items() if name in state}
    tied = {
        name: held[place(tensor)] for name, tensor in expected.items() if name not in state and place(tensor) in held
    }
    return {**state, **tied}


def load_state(module: nn.Module, state: dict[str, Tensor], source: str, what: str) -> None:
    module.load_state_dict(fit(module.state_dict(), state, source, what), strict=True)


def fit(expected: dict[str, Tensor], state: dict[str, Tensor], source: str, what: str) -> dict[str, Tensor]:
    """The state with the names of the module; strict about names, shapes and kinds of numbers."""
    state = strip_prefix(state, set(expected))
    # Older checkpoints lack BatchNorm's step counters, which evaluation never reads.
    counters = {name: value for name, value in expected.items() if name.endswith(".num_batches_tracked")}
    state = _with_tied(expected, {**counters, **state})
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    if missing or unexpected:
        parts = [
            f"{len(names)} names {kind} (first: {shown(names[0])})"
            for kind, names in (("missing", missing), ("unexpected", unexpected))
            if names
        ]
        raise InputError(
            f"{source} does not fit {what}: {', '.join(parts)}; give the architecture that it was trained as"
        )
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            raise InputError(
                f"{source} does not fit {what}: {shown(name)} is {tuple(tensor.shape)} in the file, but "
                f"{tuple(expected[name].shape)} in the model; check --arch, --num-classes and --input-shape"
            )
        if expected[name].is_floating_point() and tensor.dtype != torch.float32:
            raise InputError(
                f"{source}: {shown(name)} is {tensor.dtype}, so the file is already quantized; give the float "
                "checkpoint"
            )
    return state
