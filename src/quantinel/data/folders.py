"""Folders of pictures: one folder per class, or a flat folder of unlabeled pictures."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from quantinel.data.guards import printable, reason
from quantinel.data.images import ImageSet
from quantinel.data.pictures import SUFFIXES, decode_all
from quantinel.data.request import Request
from quantinel.errors import InputError, UsageError

_SPLITS = frozenset({"train", "training", "test", "testing", "val", "valid", "validation"})
_IGNORED = frozenset({"__MACOSX"})


def load_folder(folder: Path, request: Request) -> ImageSet:
    """Read a folder of pictures, resized and cropped as `pictures.decode` does.

    Raises:
        InputError: no pictures, or an unreadable one.
        UsageError: the folder holds splits, not classes.
    """
    paths, labels, class_names = list_pictures(folder)
    chosen = request.choose(labels, len(paths))
    if chosen is not None:
        paths = [paths[i] for i in chosen.tolist()]
        labels = None if labels is None else labels[chosen]
    sources = ((printable(path), path) for path in paths)
    return ImageSet(decode_all(sources, len(paths), request), labels, request.name, class_names)


def list_pictures(folder: Path) -> tuple[list[Path], Tensor | None, tuple[str, ...] | None]:
    """The pictures of a folder, sorted, with labels (N,) int64 and class names where it holds folders.

    A label is the index of the sorted names of all visible folders, those without pictures included, so that
    a class without images does not shift the others. Hidden files and files that are no pictures are ignored.
    Symbolic links are followed, each folder once.

    Raises:
        InputError: no pictures, pictures both beside and inside of the folders, or in one folder only.
        UsageError: the folders are named train, test, ...
    """
    flat, folders = _entries(folder)
    seen = {_identity(folder)}
    trees = [_pictures_under(child, seen) for child in folders]
    shown = printable(folder)
    if not any(trees):
        if not flat:
            raise InputError(
                f"{shown} holds no pictures; expected one folder per class, each with pictures "
                f"({', '.join(sorted(SUFFIXES))}), or pictures without folders"
            )
        return flat, None, None
    if flat:
        raise InputError(
            f"{shown} holds pictures beside folders of pictures; give one folder per class, or one flat folder"
        )
    names = tuple(child.name for child in folders)
    filled = [child.name for child, tree in zip(folders, trees, strict=True) if tree]
    # One is a wrapper around the data far more often than a single class, which would have to be class 0.
    if len(filled) == 1:
        raise InputError(
            f"{shown} holds pictures in one folder only, {printable(filled[0])!r}; give that folder, or one "
            "folder per class"
        )
    if all(child.lower() in _SPLITS for child in filled):
        raise UsageError(f"{shown} holds splits, not classes; give one of them, such as {printable(filled[0])!r}")
    labels = torch.tensor([label for label, tree in enumerate(trees) for _ in tree], dtype=torch.int64)
    return [path for tree in trees for path in tree], labels, names


def _entries(folder: Path) -> tuple[list[Path], list[Path]]:
    """Pictures and visible folders directly in ``folder``, each sorted by name."""
    pictures: list[Path] = []
    folders: list[Path] = []
    try:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.name.startswith(".") or entry.name in _IGNORED:
                    continue
                if entry.is_dir():
                    folders.append(Path(entry.path))
                elif Path(entry.name).suffix.lower() in SUFFIXES:
                    pictures.append(Path(entry.path))
    except OSError as error:
        raise InputError(f"{printable(folder)} cannot be read ({reason(error)}); check the folder") from error
    return pictures, folders


def _pictures_under(folder: Path, seen: set[tuple[int, int]]) -> list[Path]:
    """All pictures below ``folder``; ``seen`` holds the folders visited so far, against loops of links."""
    identity = _identity(folder)
    if identity in seen:
        return []
    seen.add(identity)
    pictures, folders = _entries(folder)
    for child in folders:
        pictures += _pictures_under(child, seen)
    return pictures


def _identity(folder: Path) -> tuple[int, int]:
    try:
        status = folder.stat()
    except OSError as error:
        raise InputError(f"{printable(folder)} cannot be read ({reason(error)}); check the folder") from error
    return status.st_dev, status.st_ino
