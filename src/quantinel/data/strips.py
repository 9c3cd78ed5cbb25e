"""Lossless WebP strips: hundreds of small images stacked top to bottom in one picture, inside an ``.npz``.

The bundled slices and the CIFAR-10 and GTSRB copies that this project uses have this form: arrays
``strip_00``, ``strip_01``, ... (bytes of one WebP each) and ``labels`` (integers).
"""

from __future__ import annotations

import io
import os
import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from quantinel.data.guards import printable, reason, require_bytes
from quantinel.data.images import ImageSet
from quantinel.data.npz import NpzArchive, labels_tensor
from quantinel.data.pictures import MAX_PIXELS, picture_errors
from quantinel.errors import InputError, OutputError

IMAGES_PER_STRIP = 500
_MAX_SIDE = 16383  # of a WebP
_STRIP = re.compile(r"strip_(\d+)")


def is_strips(names: tuple[str, ...]) -> bool:
    """Whether the arrays of an ``.npz`` are strips."""
    return any(_STRIP.fullmatch(name) for name in names)


def read_strips(path: Path, name: str, class_names: tuple[str, ...] | None = None) -> ImageSet:
    """Read all strips of one file as (N, 3, S, S), S the width of the strips.

    Raises:
        InputError: the file is missing, corrupt, or holds no strips.
    """
    where = printable(path)
    with NpzArchive(path) as archive:
        keys = [key for key in archive.names if _STRIP.fullmatch(key)]
        if not keys:
            raise InputError(f"{where} holds no strip_NN arrays; copy it again")
        # By number: strip_100 follows strip_99, not strip_10.
        keys.sort(key=lambda key: int(key.removeprefix("strip_")))
        header = archive.header("labels")
        if header.dtype.kind not in "iu" or len(header.shape) != 1:
            raise InputError(f"{where}: labels are {header.dtype} {header.shape}, not integers (N,); copy it again")
        labels = labels_tensor(archive.read("labels"), where)
        parts: list[np.ndarray] = []
        count = 0
        for key in keys:
            parts.append(_decode(archive.read(key).tobytes(), f"{where}: {key}"))
            count += len(parts[-1])
            if parts[-1].shape[1:] != parts[0].shape[1:] or count > len(labels):
                raise InputError(f"{where}: {key} does not fit the strips and labels before it; copy it again")
            require_bytes(count * parts[0][0].nbytes, where)
    if count != len(labels):
        raise InputError(f"{where} has {count} images but {len(labels)} labels; copy it again")
    images = torch.from_numpy(np.concatenate(parts)).permute(0, 3, 1, 2).contiguous()
    return ImageSet(images, labels, name, class_names)


def _decode(data: bytes, where: str) -> np.ndarray:
    with picture_errors(where), Image.open(io.BytesIO(data), formats=("WEBP", "PNG")) as picture:
        width, height = picture.size
        if width * height > MAX_PIXELS or height % width:
            raise ValueError(f"{width}x{height} pixels, not a stack of squares")
        return np.asarray(picture.convert("RGB")).reshape(-1, width, width, 3)


def write_strips(path: Path, images: ImageSet) -> None:
    """Write square RGB images as strips of up to 500; inverse of `read_strips`. The bytes are reproducible.

    Raises:
        InputError: no labels, no images, or not square RGB.
        OutputError: the file could not be written; nothing half-written is left.
    """
    channels, height, width = images.shape
    if channels != 3 or height != width or images.labels is None or not len(images) or width > _MAX_SIDE:
        raise InputError(f"{images.name}: strips hold square RGB images with labels; convert them first")
    pixels = images.images.permute(0, 2, 3, 1).numpy()
    labels = images.labels.numpy()
    arrays = {"labels": labels.astype(np.uint8 if labels.max() < 256 else np.int64)}
    per_strip = min(IMAGES_PER_STRIP, _MAX_SIDE // height)
    for number, start in enumerate(range(0, len(images), per_strip)):
        buffer = io.BytesIO()
        sheet = np.ascontiguousarray(pixels[start : start + per_strip].reshape(-1, width, 3))
        Image.fromarray(sheet).save(buffer, "WEBP", lossless=True, quality=100, method=6, exact=True)
        arrays[f"strip_{number:02d}"] = np.frombuffer(buffer.getvalue(), dtype=np.uint8)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.npz")
    try:
        np.savez(unfinished, **arrays)  # type: ignore[arg-type]
        unfinished.replace(path)
    except OSError as error:
        raise OutputError(f"{printable(path)} could not be written ({reason(error)}); check the folder") from error
    finally:
        unfinished.unlink(missing_ok=True)
