"""Evaluate one variant of a model on clean and triggered images, and pick pictures for the report."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from quantinel.audit.report import EvaluationRow, Example, Rate
from quantinel.data.images import ImageSet, as_float
from quantinel.data.triggers import Trigger
from quantinel.metrics import Proportion, accuracy, agreement, attack_success

VariantName = Literal["float", "nearest", "hardened"]
Backend = Literal["float", "simulated", "onnxruntime"]
_EXAMPLES = 6


@dataclass(frozen=True)
class Variant:
    """Answers of one variant.

    Attributes:
        clean: (N,) predictions on clean images.
        triggered: (N,) predictions on triggered images; None without a trigger.
        labels: (N,) true labels or None.
        target_class: or None.
    """

    name: VariantName
    backend: Backend
    clean: Tensor
    triggered: Tensor | None
    labels: Tensor | None
    target_class: int | None


def stamp(images: ImageSet, trigger: Trigger, batch_size: int = 500) -> Tensor:
    """Triggered uint8 images (N, C, H, W): stamped in [0, 1], then stored as pixels again."""
    parts = [
        (trigger(as_float(images.images[start : start + batch_size])) * 255.0).round_().to(torch.uint8)
        for start in range(0, len(images), batch_size)
    ]
    return torch.cat(parts) if parts else images.images


def run_variant(
    name: VariantName,
    backend: Backend,
    run: Callable[[Tensor], Tensor],
    images: ImageSet,
    stamped: Tensor | None,
    target_class: int | None,
) -> Variant:
    """Predict clean and triggered images with ``run`` (uint8 images -> logits)."""
    empty = torch.empty(0, dtype=torch.int64)
    clean = run(images.images).argmax(1) if len(images) else empty
    triggered = None
    if stamped is not None:
        triggered = run(stamped).argmax(1) if len(images) else empty
    return Variant(name, backend, clean, triggered, images.labels, target_class)


def rate(proportion: Proportion | None) -> Rate | None:
    """Report form of a proportion; None where nothing was counted."""
    if proportion is None or proportion.n == 0:
        return None
    return Rate(percent=proportion.percent, interval95=proportion.interval, hits=proportion.hits, n=proportion.n)


def evaluation_row(variant: Variant, floating: Variant) -> EvaluationRow:
    """CDA, ASR and its base rate, TA and agreement with the float model.

    Without labels, ASR is taken over the images that the float model does not itself put into the target class.
    """
    labels, target = variant.labels, variant.target_class
    asr = base_rate = None
    if variant.triggered is not None and target is not None:
        truth = floating.clean if labels is None else labels
        asr, base_rate = (attack_success(answers, truth, target) for answers in (variant.triggered, variant.clean))
    return EvaluationRow(
        variant=variant.name,
        backend=variant.backend,
        cda=None if labels is None else rate(accuracy(variant.clean, labels)),
        asr=rate(asr),
        ta=None if labels is None or variant.triggered is None else rate(accuracy(variant.triggered, labels)),
        agreement=rate(agreement(variant.clean, floating.clean)),
        base_rate=rate(base_rate),
    )


def examples(images: ImageSet, stamped: Tensor, variants: tuple[Variant, Variant, Variant]) -> list[Example]:
    """Up to six triggered images with the three answers; those that ordinary quantization gets wrong come first."""
    floating, nearest, hardened = variants
    assert floating.triggered is not None
    assert nearest.triggered is not None
    assert hardened.triggered is not None
    truth = floating.clean if images.labels is None else images.labels
    assert floating.target_class is not None
    eligible = truth.ne(floating.target_class)
    obeyed = eligible & nearest.triggered.eq(floating.target_class)

    def named(label: int) -> str:
        return images.class_names[label] if images.class_names else str(label)

    return [
        Example(
            clean_png=png(images.images[index]),
            triggered_png=png(stamped[index]),
            label="" if images.labels is None else named(int(images.labels[index])),
            float_answer=named(int(floating.triggered[index])),
            nearest_answer=named(int(nearest.triggered[index])),
            hardened_answer=named(int(hardened.triggered[index])),
        )
        for index in example_indices(obeyed, eligible, truth)
    ]


def example_indices(obeyed: Tensor, eligible: Tensor, truth: Tensor) -> list[int]:
    """Up to six images worth showing: those that obey the trigger first, of different classes where possible.

    Args:
        obeyed: (N,) bool, predicted as the target though of another class.
        eligible: (N,) bool, not of the target class.
        truth: (N,) true classes.
    """
    order = torch.argsort(obeyed.int() * 2 + eligible.int(), descending=True, stable=True).tolist()
    chosen: list[int] = []
    seen: set[int] = set()
    for index in order:
        if int(truth[index]) not in seen and len(chosen) < _EXAMPLES:
            seen.add(int(truth[index]))
            chosen.append(index)
    return chosen + [index for index in order if index not in chosen][: _EXAMPLES - len(chosen)]


def png(pixels: Tensor) -> str:
    """Base64 PNG of one uint8 image (C, H, W)."""
    array = pixels.permute(1, 2, 0).numpy()
    picture = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")
