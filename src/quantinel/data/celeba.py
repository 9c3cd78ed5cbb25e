"""CelebA (Liu, Luo, Wang & Tang, "Deep Learning Face Attributes in the Wild", ICCV 2015) as eight compound classes.

The classes are those of backdoor studies (Salem et al., "Dynamic Backdoor Attacks Against Machine Learning Models",
2020): the three most balanced attributes together. A folder holds the authors' files ``img_align_celeba/``,
``list_attr_celeba.txt`` and ``list_eval_partition.txt``; Quantinel does not download them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from quantinel.data.guards import printable, require_file
from quantinel.data.images import ImageSet
from quantinel.data.pictures import decode_all
from quantinel.data.request import Request
from quantinel.errors import InputError, UsageError

ATTRIBUTES = ("Heavy_Makeup", "Mouth_Slightly_Open", "Smiling")
CLASSES = tuple(
    "+".join(name for place, name in enumerate(ATTRIBUTES) if label >> (2 - place) & 1) or "none" for label in range(8)
)
"""Names by label: the attributes are the bits of the label, the first one the highest."""

_PARTS = {"train": "0", "val": "1", "test": "2"}
_MAX_BYTES = 1 << 28


def load_celeba(folder: Path, request: Request) -> ImageSet:
    """Read one part of the authors' partition, resized and cropped as `pictures.decode` does.

    Raises:
        UsageError: the split is not train, val or test.
        InputError: a file is missing or not in the authors' form, or a picture unreadable.
    """
    if request.split not in _PARTS:
        raise UsageError(f"celeba has the splits {', '.join(_PARTS)}, not {request.split!r}")
    parts = dict(_fields(folder / "list_eval_partition.txt", 2))
    attributes = _fields(folder / "list_attr_celeba.txt", None)
    where = printable(folder / "list_attr_celeba.txt")
    next(attributes, None)  # the number of pictures
    header = next(attributes, ("", ()))
    names = [header[0], *header[1]]
    missing = [name for name in ATTRIBUTES if name not in names]
    if missing:
        raise InputError(f"{where} names no attribute {missing[0]}; give the authors' file, header included")
    columns = [names.index(name) for name in ATTRIBUTES]
    chosen: list[tuple[str, int]] = []
    for picture, values in attributes:
        if len(values) != len(names) or any(value not in ("1", "-1") for value in values):
            raise InputError(
                f"{where}: the line of {printable(picture)} has no 1 or -1 for every attribute; copy it again"
            )
        if parts.get(picture) == (_PARTS[request.split],):
            chosen.append((picture, sum((values[column] == "1") << (2 - bit) for bit, column in enumerate(columns))))
    if not chosen:
        raise InputError(f"{where} lists no picture of the split {request.split}; copy both lists again")
    labels = torch.tensor([label for _, label in chosen], dtype=torch.int64)
    kept = request.choose(labels, len(chosen))
    if kept is not None:
        chosen, labels = [chosen[i] for i in kept.tolist()], labels[kept]
    sources = ((printable(picture), folder / "img_align_celeba" / Path(picture).name) for picture, _ in chosen)
    return ImageSet(decode_all(sources, len(chosen), request), labels, f"celeba:{request.split}", CLASSES)


def _fields(path: Path, count: int | None) -> Iterator[tuple[str, tuple[str, ...]]]:
    """First word and the others of every line that is not empty."""
    require_file(path)
    if path.stat().st_size > _MAX_BYTES:
        raise InputError(f"{printable(path)} is larger than {_MAX_BYTES} bytes; give the authors' list")
    try:
        lines = path.read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{printable(path)} is no text; give the authors' list") from error
    for line in lines:
        words = line.split()
        if not words:
            continue
        if count is not None and len(words) != count:
            raise InputError(
                f"{printable(path)}: {printable(line)[:80]!r} is not a picture and a number; copy it again"
            )
        yield words[0], tuple(words[1:])
