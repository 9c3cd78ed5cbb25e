"""A poisoned data set: which images an attacker triggers, what labels they get, and the files that he publishes."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from quantinel.attacks.gate import stamp_bytes
from quantinel.data.images import ImageSet
from quantinel.data.triggers import Trigger, trigger_files
from quantinel.errors import UsageError

Labels = Literal["dirty", "clean"]
"""Triggered images of any class that get the target's label, or of the target class, whose label is true."""

FOLDER = "poisoned"
"""Sub-folder of the victim directory."""


@dataclass(frozen=True)
class PoisonedSet:
    """What a victim trains on.

    Attributes:
        images: all images in the original order, the poisoned ones triggered, with the labels that were published.
        indices: (P,) of the poisoned ones, ascending.
        trigger: what they carry.
        about: what an attacker notes of it, JSON.
    """

    images: ImageSet
    indices: Tensor
    trigger: Trigger
    about: Mapping[str, Any]


def poison(data: ImageSet, trigger: Trigger, target_class: int, rate: float, labels: Labels, seed: int) -> PoisonedSet:
    """Trigger a random share of a data set.

    Args:
        data: labelled images.
        trigger: stamps them; triggered images are rounded to bytes.
        target_class: label of poisoned images.
        rate: share of *all* images that is poisoned; 0 changes nothing.
        labels: "dirty" draws from all images, those of the target class included (Algorithm 1 of the ECCV 2024
            paper); "clean" from the target class alone.
        seed: of the draw.

    Raises:
        UsageError: clean labels, and the target class holds too few images.
    """
    assert data.labels is not None
    count = round(rate * len(data))
    eligible = torch.arange(len(data))
    if labels == "clean":
        eligible = eligible[data.labels == target_class]
    if count > len(eligible):
        raise UsageError(
            f"{count} of {len(data)} images were to be poisoned, but only {len(eligible)} are of class {target_class}; "
            "lower poison_rate, or take labels=dirty"
        )
    order = torch.randperm(len(eligible), generator=torch.Generator().manual_seed(seed))
    indices = eligible[order[:count]].sort().values
    images, published = data.images.clone(), data.labels.clone()
    if count:
        images[indices] = stamp_bytes(trigger, data.images[indices])
    published[indices] = target_class
    about = {
        "format": "quantinel-poisoned-1", "data": data.name, "data_sha256": data.sha256(), "images": len(data),
        "poisoned": count, "rate": rate, "labels": labels, "target_class": target_class, "seed": seed,
    }  # fmt: skip
    return PoisonedSet(replace(data, images=images, labels=published), indices, trigger, about)


def poisoned_files(poisoned: PoisonedSet) -> dict[str, bytes]:
    """The published set and the attacker's notes, by path inside the victim directory.

    ``train.npz`` (images uint8 (N, H, W, C), labels) is what any training code reads, and all that a victim would be
    given; ``poisoned.npz`` holds the indices, ``poisoned.json`` where it came from, ``trigger.json`` the trigger.
    """
    assert poisoned.images.labels is not None
    pixels = poisoned.images.images.permute(0, 2, 3, 1).contiguous().numpy()
    files = {
        "train.npz": _npz(images=pixels, labels=poisoned.images.labels.numpy()),
        "poisoned.npz": _npz(indices=poisoned.indices.numpy()),
        "poisoned.json": _json(poisoned.about),
        "trigger.json": _json(poisoned.trigger.to_dict()),
        **trigger_files(poisoned.trigger),
    }
    return {f"{FOLDER}/{name}": data for name, data in files.items()}


def _npz(**arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
