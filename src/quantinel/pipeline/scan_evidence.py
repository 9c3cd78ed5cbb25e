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
"""Names under which a detector returns a trigger: mask (H, W) or (1, H, W), pattern (C, H, W), or the triggered
versions of the first images (N, C, H, W), all float in [0, 1]."""


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
    mask, pattern = found.tensors.get(MASK), found.tensors.get(PATTERN)
    return RecoveredTrigger(
        check=check,
        target=scheme,
        suspect_class=class_name(target, images.class_names),
        mask_png=None if mask is None else _picture(mask),
        pattern_png=None if pattern is None else _picture(pattern),
        examples=[] if stamped is None else _examples(stamped, target, subject, images),
    )


def _triggered(found: Detection, images: ImageSet) -> Tensor | None:
    """(N, C, H, W) uint8: all images with mask and pattern, else those that the detector made itself."""
    mask, pattern = found.tensors.get(MASK), found.tensors.get(PATTERN)
    if mask is not None and pattern is not None and mask.shape[-2:] == pattern.shape[-2:] == images.shape[1:]:
        share = mask.detach().float().reshape(-1, 1, *images.shape[1:])[:1].clamp(0, 1)
        paint = pattern.detach().float().reshape(-1, *images.shape)[:1].clamp(0, 1)
        return _pixels((1 - share) * images.as_float() + share * paint)
    made = found.tensors.get(TRIGGERED)
    if made is None or made.ndim != 4 or tuple(made.shape[1:]) != images.shape or len(made) > len(images):
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


def _picture(value: Tensor) -> str | None:
    """A mask or pattern as PNG; None where it is none of one or three channels."""
    flat = value.detach().float()
    flat = flat[None] if flat.ndim == 2 else flat.reshape(-1, *flat.shape[-2:])
    return png(_pixels(flat)) if flat.shape[0] in (1, 3) else None


def _pixels(value: Tensor) -> Tensor:
    return (value.nan_to_num(0.0).clamp(0, 1) * 255).round().to(torch.uint8)
