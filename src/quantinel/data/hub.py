"""Data sets by name: Hugging Face (`datasets`) and `torchvision`, both optional.

Either package finds the data in its own cache first, so both work offline once the data is there.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from quantinel.data.guards import import_optional, printable, reason
from quantinel.data.images import ImageSet
from quantinel.data.npz import labels_tensor
from quantinel.data.parquet import IMAGE_COLUMNS, LABEL_COLUMNS
from quantinel.data.pictures import decode_all, picture_errors
from quantinel.data.request import Request
from quantinel.errors import InputError, UsageError

# Those that have a training and a test split, one label an image, and no other required argument.
TORCHVISION_NAMES = (
    "CIFAR10",
    "CIFAR100",
    "Country211",
    "DTD",
    "FashionMNIST",
    "FGVCAircraft",
    "Flowers102",
    "Food101",
    "GTSRB",
    "Imagenette",
    "KMNIST",
    "MNIST",
    "STL10",
    "SVHN",
    "USPS",
)
_TRAIN_FLAG = frozenset({"CIFAR10", "CIFAR100", "FashionMNIST", "KMNIST", "MNIST", "USPS"})
_OLDEST_DATASETS = 3  # before that, a data set could bring code that ran on loading


def load_hugging_face(identifier: str, request: Request) -> ImageSet:
    """Read a data set of the Hugging Face Hub, or of its local cache.

    Args:
        identifier: ``OWNER/NAME`` or ``OWNER/NAME:CONFIGURATION``.
        request: ``split`` as the data set names it; "test" falls back to "validation".

    Raises:
        UsageError: `datasets` is missing or too old.
        InputError: no such data set or split, or no images in it.
    """
    name = request.name
    datasets = import_optional("datasets", name, "datasets")
    if int(str(datasets.__version__).partition(".")[0]) < _OLDEST_DATASETS:
        raise UsageError(f"{name} needs datasets {_OLDEST_DATASETS}.0 or newer; run: pip install --upgrade datasets")
    table, name = _load_split(datasets, identifier, request)
    image, label = _columns(table.features, name)
    if not len(table):
        raise InputError(f"{name} has no rows; give another split")
    labels, class_names = None, None
    if label is not None:
        values = np.asarray(table.select_columns([label])[:][label])
        if values.dtype.kind not in "iu":
            raise InputError(f"{name}: the column {label} does not hold one integer a row; its labels are missing")
        if not (values == -1).all():  # -1 marks a split whose labels are withheld
            labels = labels_tensor(values, name)
            class_names = _names(getattr(table.features[label], "names", None), labels)
    chosen = request.choose(labels, len(table))
    table = table.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    rows = list(range(len(table))) if chosen is None else chosen.tolist()
    if chosen is not None:
        labels = None if labels is None else labels[chosen]
    sources = ((f"{name} row {row}", _stored(table[row][image], name, row)) for row in rows)
    images = decode_all(sources, len(rows), request)
    return ImageSet(images, labels, name, class_names)


def _load_split(datasets: Any, identifier: str, request: Request) -> tuple[Any, str]:
    """The rows, and the name of the source with the split that was found."""
    path, _, configuration = identifier.partition(":")
    wanted = [request.split, "validation"] if request.split == "test" else [request.split]
    failure: Exception | None = None
    for candidate in wanted:
        try:
            table = datasets.load_dataset(path, configuration or None, split=candidate)
            return table, f"{request.name}[{candidate}]"
        except ValueError as error:
            failure = failure or error  # the first message names the splits that exist
            if "split" not in str(error).lower():
                break
        except Exception as error:
            failure = error
            break
    raise InputError(
        f"{request.name} cannot be loaded ({reason(failure)}); check the name, the split and the connection"
    ) from failure


def _columns(features: Any, name: str) -> tuple[str, str | None]:
    images = [column for column, kind in features.items() if type(kind).__name__ == "Image"]
    if not images:
        raise InputError(f"{name} has no image column among {printable(', '.join(features))}; give images")
    image = next((column for column in IMAGE_COLUMNS if column in images), images[0])
    classes = [column for column, kind in features.items() if type(kind).__name__ == "ClassLabel"]
    named = [column for column in LABEL_COLUMNS if column in (classes or features)]
    return image, next(iter(named + classes), None)


def _stored(value: Any, name: str, row: int) -> bytes | Path:
    if value and value.get("bytes"):
        return bytes(value["bytes"])
    if value and value.get("path"):
        return Path(value["path"])
    raise InputError(f"{name} row {row} holds no picture; give a data set without gaps")


def load_torchvision(identifier: str, request: Request) -> ImageSet:
    """Read a data set of torchvision, downloading it when it is not there.

    Args:
        identifier: ``NAME`` or ``NAME:DIR``; the folder is ``$TORCH_HOME/datasets`` otherwise.
        request: ``split`` is "train" or "test".

    Raises:
        UsageError: torchvision is missing, or there is no such name or split.
        InputError: the data is neither there nor can be downloaded.
    """
    name, split = request.name, request.split
    wanted, _, folder = identifier.partition(":")
    kind = next((known for known in TORCHVISION_NAMES if known.lower() == wanted.lower()), None)
    if kind is None:
        raise UsageError(f"{name} is not known; the names are {', '.join(TORCHVISION_NAMES)}")
    if split not in ("train", "test"):
        raise UsageError(f"{name} has the splits train and test, not {split!r}")
    module = import_optional("torchvision.datasets", name, "torchvision")
    cache = Path(os.environ.get("TORCH_HOME", "~/.cache/torch")) / "datasets"
    root = (Path(folder) if folder else cache).expanduser()
    table = _open_torchvision(getattr(module, kind), kind, root, split, name)
    known = _known_labels(table)
    chosen = request.choose(known, len(table))
    rows = list(range(len(table))) if chosen is None else chosen.tolist()
    found: list[int] = []
    images = decode_all(_items(table, rows, name, found), len(rows), request)
    labels = labels_tensor(np.asarray(found, dtype=np.int64), name)
    return ImageSet(images, labels, f"{name}[{split}]", _names(getattr(table, "classes", None), labels))


def _open_torchvision(cls: Any, kind: str, root: Path, split: str, name: str) -> Any:
    if kind in _TRAIN_FLAG:
        options: dict[str, Any] = {"train": split == "train"}
    else:
        options = {"split": "val" if kind == "Imagenette" and split == "test" else split}
    try:
        with contextlib.suppress(RuntimeError):  # how it says that the data is not there yet
            return cls(root=str(root), download=False, **options)
        root.mkdir(parents=True, exist_ok=True)
        # It prints while it downloads; standard output belongs to results.
        with contextlib.redirect_stdout(sys.stderr):
            return cls(root=str(root), download=True, **options)
    except Exception as error:
        raise InputError(
            f"{name} is not in {printable(root)} and cannot be downloaded ({reason(error)}); "
            "check the connection, or give torchvision:NAME:DIR"
        ) from error


def _known_labels(table: Any) -> Tensor | None:
    """Labels (N,) that a torchvision data set holds before any picture is decoded, or None."""
    for attribute in ("targets", "labels", "_labels"):
        values = getattr(table, attribute, None)
        if values is not None and len(values) == len(table):
            return torch.as_tensor(np.asarray(values)).to(torch.int64)
    samples = getattr(table, "_samples", None)
    if samples is not None and len(samples) == len(table) and all(len(sample) == 2 for sample in samples):
        return torch.tensor([int(label) for _, label in samples], dtype=torch.int64)
    return None


def _items(table: Any, rows: list[int], name: str, labels: list[int]) -> Iterator[tuple[str, Image.Image]]:
    """Pictures of ``rows``; their labels are appended to ``labels`` on the way."""
    for row in rows:
        where = f"{name} item {row}"
        with picture_errors(where):
            picture, label = table[row]
        labels.append(int(label))
        yield where, picture


def _names(names: Any, labels: Tensor) -> tuple[str, ...] | None:
    """Class names, if they cover all labels."""
    if not isinstance(names, list | tuple) or not all(isinstance(n, str) for n in names):
        return None
    return tuple(names) if not labels.numel() or int(labels.max()) < len(names) else None
