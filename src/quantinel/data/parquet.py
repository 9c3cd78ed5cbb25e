"""Parquet in the Hugging Face image layout: ``image`` struct{bytes, path} or binary, ``label`` integers.

Files are read in two passes: first the labels alone, to choose rows, then the pictures of those rows, a few
at a time and one row group after the other, so that memory does not grow with the file. Needs pyarrow.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from quantinel.data.guards import import_optional, printable, reason, require_file
from quantinel.data.images import ImageSet
from quantinel.data.npz import labels_tensor
from quantinel.data.pictures import decode_all
from quantinel.data.request import Request
from quantinel.errors import InputError, QuantinelError, UsageError

IMAGE_COLUMNS = ("image", "img", "images", "picture")
LABEL_COLUMNS = ("label", "labels", "fine_label", "target", "class")
_ROWS_AT_ONCE = 64
_MAX_ROWS = 100_000_000  # a run-length coded label column declares any number of rows in a few bytes
_SPLIT_NAME = re.compile(r"(train|test|validation|valid|val)(?![a-z])")
_SAME_SPLIT = {"val": "validation", "valid": "validation"}


@dataclass(frozen=True)
class _Shard:
    """One file.

    Attributes:
        path: of the file.
        image: column of the pictures.
        nested: whether that column is a struct with ``bytes``.
        label: column of the labels, or None.
        groups: rows of each row group.
        class_names: from the metadata that `datasets` writes, or None.
    """

    path: Path
    image: str
    nested: bool
    label: str | None
    groups: tuple[int, ...]
    class_names: tuple[str, ...] | None


def parquet_files(folder: Path, split: str) -> tuple[list[Path], str | None]:
    """The visible Parquet files of a folder, or of its folder ``data`` (the layout of the Hub), sorted.

    Where file names start with a split (``train-00000-of-00001.parquet``), only those of ``split`` are given,
    and the split: a set without test files gives its validation files as "test". No files: an empty list.

    Raises:
        UsageError: there is no such split.
    """
    files: list[Path] = []
    for place in (folder, folder / "data"):
        files = files or sorted(path for path in place.glob("*.parquet") if not path.name.startswith("."))
    by_split: dict[str, list[Path]] = {}
    for path in files:
        if match := _SPLIT_NAME.match(path.name.lower()):
            by_split.setdefault(_SAME_SPLIT.get(match[1], match[1]), []).append(path)
    if not by_split:
        return files, None
    wanted = _SAME_SPLIT.get(split, split)
    if wanted == "test" and "test" not in by_split:
        wanted = "validation"
    if wanted not in by_split:
        raise UsageError(
            f"{printable(folder)} has no split {split!r}, it has {', '.join(sorted(by_split))}; ask "
            "for one of these, or give one file"
        )
    return by_split[wanted], wanted


def load_parquet(files: list[Path], request: Request) -> ImageSet:
    """Read all of ``files``, pictures resized and cropped as `pictures.decode` does.

    Raises:
        InputError: corrupt, no image column, no rows, labels that are no class indices.
        UsageError: pyarrow is missing.
    """
    name = request.name
    shards = [_inspect(path) for path in files]
    total = sum(sum(shard.groups) for shard in shards)
    if not 0 < total <= _MAX_ROWS:
        raise InputError(f"{name} has {total} rows, it must have 1 to {_MAX_ROWS}; check the files")
    labels = _labels(shards, name)
    chosen = request.choose(labels, total)
    rows = np.arange(total) if chosen is None else chosen.numpy()
    if chosen is not None:
        labels = None if labels is None else labels[chosen]
    images = decode_all(_pictures(shards, rows), len(rows), request)
    return ImageSet(images, labels, name, shards[0].class_names if labels is not None else None)


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    try:
        yield
    except QuantinelError:
        raise
    except Exception as error:  # Arrow has its own exception tree beside OSError and ValueError
        raise InputError(f"{printable(path)} is not readable Parquet ({reason(error)}); copy it again") from error


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    parquet = import_optional("pyarrow.parquet", "reading Parquet", "quantinel[parquet]")
    require_file(path)
    with _errors(path), parquet.ParquetFile(path) as file:
        yield file


def _inspect(path: Path) -> _Shard:
    with _open(path) as file:
        types = import_optional("pyarrow.types", "reading Parquet", "quantinel[parquet]")
        schema = file.schema_arrow
        image, nested = _image_column(schema, types, path)
        label = next((column for column in LABEL_COLUMNS if column in schema.names), None)
        if label is not None and not types.is_integer(schema.field(label).type):
            raise InputError(
                f"{printable(path)}: the column {label} is {printable(schema.field(label).type)}, labels "
                "must be integers from 0; convert or drop the column"
            )
        groups = tuple(file.metadata.row_group(i).num_rows for i in range(file.num_row_groups))
        if any(rows < 0 for rows in groups):
            raise ValueError("a row group with a negative number of rows")
        return _Shard(path, image, nested, label, groups, _class_names(schema.metadata, label))


def _image_column(schema: Any, types: Any, path: Path) -> tuple[str, bool]:
    def is_binary(kind: Any) -> bool:
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    def holds_bytes(kind: Any) -> bool:
        return bool(
            types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and is_binary(kind.field("bytes").type)
        )

    nested = [field.name for field in schema if holds_bytes(field.type)]
    plain = [field.name for field in schema if is_binary(field.type)]
    for columns in (nested, plain):
        named = [column for column in IMAGE_COLUMNS if column in columns]
        if named or len(columns) == 1:
            return (named or columns)[0], columns is nested
    raise InputError(
        f"{printable(path)} has no image column among {printable(', '.join(schema.names[:12]))}; expected "
        "'image' as struct{bytes, path}, the layout of Hugging Face datasets"
    )


def _class_names(metadata: dict[bytes, bytes] | None, label: str | None) -> tuple[str, ...] | None:
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        names = features[label]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):  # class names are a courtesy
        return None
    return tuple(names) if isinstance(names, list) and all(isinstance(n, str) for n in names) else None


def _labels(shards: list[_Shard], name: str) -> Tensor | None:
    columns = {shard.label for shard in shards}
    if columns == {None}:
        return None
    if len(columns) > 1:
        raise InputError(f"{name}: its files name their labels differently; give files of one data set")
    parts = []
    for shard in shards:
        with _open(shard.path) as file:
            column = file.read(columns=[shard.label], use_threads=False).column(0)
            if column.null_count:
                raise InputError(
                    f"{printable(shard.path)}: {column.null_count} labels are missing; fill or drop the column"
                )
            parts.append(np.asarray(column.to_numpy()))
    labels = np.concatenate(parts)
    if (labels == -1).all():  # how Hugging Face data sets mark a split whose labels are withheld
        return None
    return labels_tensor(labels, name)


def _pictures(shards: list[_Shard], rows: np.ndarray) -> Iterator[tuple[str, bytes]]:
    """The pictures of the ascending ``rows``, counted over all shards."""
    first = 0
    for shard in shards:
        with _open(shard.path) as file:
            in_file = 0
            for group, count in enumerate(shard.groups):
                wanted = rows[np.searchsorted(rows, first) : np.searchsorted(rows, first + count)] - first
                for row, data in _of_group(file, shard, group, wanted):
                    where = f"{printable(shard.path)} row {in_file + row}"
                    if data is None:
                        raise InputError(f"{where} holds no picture bytes; write the pictures into the file")
                    yield where, data
                first, in_file = first + count, in_file + count


def _of_group(file: Any, shard: _Shard, group: int, wanted: np.ndarray) -> Iterator[tuple[int, bytes | None]]:
    if not len(wanted):
        return
    column = f"{shard.image}.bytes" if shard.nested else shard.image
    start = 0
    for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=[column], use_threads=False):
        values = batch.column(0).field("bytes") if shard.nested else batch.column(0)
        here = wanted[np.searchsorted(wanted, start) : np.searchsorted(wanted, start + len(values))]
        for row in here.tolist():
            yield row, values[row - start].as_py()
        start += len(values)
