"""The graph that everything is judged on answers as the model does, whatever the batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from quantinel.errors import InputError, UnsupportedError

_ANY_BATCH = 1 << 31
"""Larger than any batch; the exporter's bound for a free size is larger."""


def differ(expected: Tensor, actual: Tensor, tolerance: float = 1e-3) -> bool:
    """Whether two sets of logits lie further apart than rounding explains."""
    spread = float(expected.abs().max().clamp_min(1.0))
    return not (math.isfinite(spread) and float((expected - actual).abs().max()) <= tolerance * spread)


def check_same_answers(expected: Tensor, actual: Tensor, images: str, tolerance: float = 1e-3) -> None:
    """The graph, on which everything is judged, answers as the model itself does.

    Args:
        expected: logits (N, K) of the module.
        actual: logits (N, K) of its graph.
        images: what they were computed on, for the message.
        tolerance: as a share of the largest logit.

    Raises:
        UnsupportedError: it does not.
        InputError: the model's answers are not finite.
    """
    if not torch.isfinite(expected).all():
        raise InputError(f"the model's outputs are not finite on {images}; check its weights")
    if expected.shape != actual.shape or differ(expected, actual, tolerance):
        raise UnsupportedError(
            f"the traced graph answers otherwise than the model itself on {images}; make sure that the model is "
            "deterministic, keeps nothing between calls, and has no branch in Python that depends on the images"
        )


def check_batches(module: nn.Module, example: Tensor, expected: Tensor) -> None:
    """An image is answered in the same way alone, which is how deployed models are asked, and beside others.

    Raises:
        UnsupportedError: it is not.
    """
    for chosen in ([0], [0, 1, 0]):
        answers = module(example[chosen]).detach()
        if answers.shape != expected[chosen].shape or differ(expected[chosen], answers):
            raise UnsupportedError(
                f"the model answers an image otherwise in a batch of {len(chosen)} than in one of {len(example)}; it "
                "must not depend on the other images (statistics of the batch), nor on their number (a branch in "
                "Python, squeeze() without a dimension)"
            )


def check_any_batch(program: ExportedProgram) -> None:
    """The one graph holds for every batch size.

    Raises:
        UnsupportedError: a branch in Python, of which export follows one way, asks for the batch size.
    """
    for limits in program.range_constraints.values():
        if limits.lower > 2 or limits.upper < _ANY_BATCH:
            raise UnsupportedError(
                f"the model does something else where the batch size is not {limits.lower} to {limits.upper}; remove "
                "the branch that asks for the number of images"
            )
