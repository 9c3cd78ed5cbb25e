"""Recovered triggers as pictures: on sample images, with what the float and the compressed model answer."""

from __future__ import annotations

import torch
from torch import Tensor

from quantinel.audit.judging import class_name
from quantinel.audit.scan_report import RecoveredTrigger, TriggerExample
from quantinel.backends.verification import simulated_logits
from quantinel.data.images import ImageSet
from quantinel.detectors import Detection, Subject
from quantinel.pipeline.measure import example_indices, png

MASK, PATTERN, TRIGGERED = "mask", "pattern", "triggered"
"""Names under which a detector returns a trigger: mask (H, W), (1, H, W) or (C, H, W) and pattern (C, H, W), or the
triggered versions of the first images (N, C, H, W), all float in [0, 1]."""


def recovered_trigger(check: str, scheme: str, found: Detection, subject: Subject) -> RecoveredTrigger | None:
    """The trigger of a detection as pictures; None where it holds none.

    Args:
        check: id of the check.
        scheme: name of the subject's scheme.
        found: what a detector returned.
        subject: what it was given.
    """
    images, target = subject.images, found.suspect_class
    if images is None or target is None or not {MASK, PATTERN, TRIGGERED} & set(found.tensors):
        return None
    stamped = _triggered(found, images)
    channels, height, width = images.shape
    mask, pattern = (_shaped(found, name, channels, (height, width)) for name in (MASK, PATTERN))
    return RecoveredTrigger(
        check=check,
        target=scheme,
        suspect_class=class_name(target, images.class_names),
        mask_png=None if mask is None else png(_pixels(mask)),
        pattern_png=None if pattern is None else png(_pixels(pattern)),
        examples=[] if stamped is None else _examples(stamped, target, subject, images),
    )


def _shaped(found: Detection, name: str, channels: int, size: tuple[int, int]) -> Tensor | None:
    """A mask or pattern as (1 or ``channels``, H, W) in [0, 1]; None where it is missing or of another shape."""
    value = found.tensors.get(name)
    if value is None:
        return None
    value = value[None] if value.ndim == 2 else value[0] if value.ndim == 4 and len(value) == 1 else value
    fits = value.ndim == 3 and value.shape[0] in (1, channels) and tuple(value.shape[1:]) == size
    return value.detach().float().nan_to_num(0.0).clamp(0, 1) if fits else None


def _triggered(found: Detection, images: ImageSet) -> Tensor | None:
    """(N, C, H, W) uint8: all images with mask and pattern, else those that the detector made itself."""
    channels, height, width = images.shape
    mask, pattern = (_shaped(found, name, channels, (height, width)) for name in (MASK, PATTERN))
    if mask is not None and pattern is not None:
        return _pixels((1 - mask) * images.as_float() + mask * pattern)
    made = found.tensors.get(TRIGGERED)
    if made is None or made.ndim != 4 or tuple(made.shape[1:]) != images.shape or not 0 < len(made) <= len(images):
        return None
    return made if made.dtype == torch.uint8 else _pixels(made.detach().float())


def _examples(stamped: Tensor, target: int, subject: Subject, images: ImageSet) -> list[TriggerExample]:
    """Images that the float model does not itself answer with the class, those that obey first."""
    names = images.class_names
    clean = subject.float_logits[: len(stamped)].argmax(1)
    floating = simulated_logits(subject.graph.module, stamped).argmax(1)
    compressed = simulated_logits(subject.nearest.simulate(), stamped).argmax(1)
    eligible = clean.ne(target)
    obeyed = eligible & compressed.eq(target)
    return [
        TriggerExample(
            clean_png=png(images.images[index]),
            triggered_png=png(stamped[index]),
            clean_answer=class_name(int(clean[index]), names),
            float_answer=class_name(int(floating[index]), names),
            compressed_answer=class_name(int(compressed[index]), names),
        )
        for index in example_indices(obeyed, eligible, clean)
    ]


def _pixels(value: Tensor) -> Tensor:
    return (value.nan_to_num(0.0).clamp(0, 1) * 255).round().to(torch.uint8)
