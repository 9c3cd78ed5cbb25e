"""CIFAR-10 (Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009) from a folder.

Two forms are read: strip files ``data_batch_1.npz`` ... ``test_batch.npz``, and the authors' binary version
``data_batch_1.bin`` ... ``test_batch.bin`` (records of one label byte and 3,072 bytes of R, G and B planes).
The authors' Python version is a pickle and is refused.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from quantinel.data.guards import printable, require_file
from quantinel.data.images import ImageSet
from quantinel.data.npz import labels_tensor
from quantinel.data.strips import read_strips
from quantinel.errors import InputError, UsageError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_SHAPE = (3, 32, 32)
_RECORD = 1 + 3 * 32 * 32
_MAX_RECORDS = 10_000


def load_cifar10(folder: Path, split: str = "test", batches: int = 5) -> ImageSet:
    """Read the test split, or the first ``batches`` training batches of 10,000 images.

    Raises:
        UsageError: ``split`` is neither "train" nor "test", or there are no such batches.
        InputError: a file is missing or corrupt.
    """
    if split not in ("train", "test"):
        raise UsageError(f"cifar10 has the splits train and test, not {split!r}")
    if not 1 <= batches <= 5:
        raise UsageError(f"cifar10 has 1 to 5 training batches, not {batches}")
    stems = ["test_batch"] if split == "test" else [f"data_batch_{i}" for i in range(1, batches + 1)]
    parts = [_read_batch(folder, stem, f"cifar10:{split}") for stem in stems]
    labels = torch.cat([part.labels for part in parts if part.labels is not None])
    return replace(parts[0], images=torch.cat([part.images for part in parts]), labels=labels)


def _read_batch(folder: Path, stem: str, name: str) -> ImageSet:
    strips, binary = folder / f"{stem}.npz", folder / f"{stem}.bin"
    if binary.exists() and not strips.exists():
        return _read_binary(binary, name)
    if (folder / stem).exists() and not strips.exists():
        raise InputError(
            f"{printable(folder)} holds the pickled version of CIFAR-10, which is refused because a "
            "pickle can run code; give the binary version (cifar-10-binary.tar.gz)"
        )
    batch = read_strips(strips, name, CLASSES)
    if batch.shape != _SHAPE:
        raise InputError(f"{printable(strips)} holds images of {batch.shape}, CIFAR-10 has {_SHAPE}; copy it again")
    return batch


def _read_binary(path: Path, name: str) -> ImageSet:
    require_file(path)
    size = path.stat().st_size
    if not size or size % _RECORD or size > _MAX_RECORDS * _RECORD:
        raise InputError(
            f"{printable(path)} has {size} bytes, not up to {_MAX_RECORDS} records of {_RECORD}; copy it again"
        )
    records = np.fromfile(path, dtype=np.uint8).reshape(-1, _RECORD)
    images = torch.from_numpy(records[:, 1:].copy()).reshape(-1, *_SHAPE)
    return ImageSet(images, labels_tensor(records[:, 0], printable(path)), name, CLASSES)
