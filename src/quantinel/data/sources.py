"""`load_images`: every form in which a user can name images, as one `ImageSet`.

Pictures (folders, Parquet, `datasets`, `torchvision`) are resized to the model: the shorter side is brought
to size with an antialiased Lanczos filter and the centre is cut out. Arrays (``.npz``, CIFAR-10, GTSRB, the
bundled slices) are never resized: whoever made them chose the pixels. Channels are converted for both.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

from quantinel.data.celeba import load_celeba
from quantinel.data.cifar10 import CLASSES, load_cifar10
from quantinel.data.folders import load_folder
from quantinel.data.guards import printable, require_file
from quantinel.data.hub import load_hugging_face, load_torchvision
from quantinel.data.images import ImageSet
from quantinel.data.npz import NpzArchive, read_image_arrays
from quantinel.data.parquet import load_parquet, parquet_files
from quantinel.data.pictures import luma
from quantinel.data.request import Progress, Request
from quantinel.data.strips import is_strips, read_strips
from quantinel.errors import InputError, UsageError

DATA_SOURCES: dict[str, str] = {
    "FOLDER": "one folder per class (label = index of the sorted names), or a flat one without labels",
    "FILE.npz": "images uint8 (N, H, W, C), optional labels (N,)",
    "FILE.parquet": "or a folder of them: image struct{bytes, path}, optional label (Hugging Face layout)",
    "cifar10:DIR": "CIFAR-10, strips or the authors' binary version; splits train and test",
    "gtsrb:DIR": "GTSRB at 32x32, strips train_every3rd.npz and test.npz",
    "celeba:DIR": "CelebA, the authors' files, as eight classes of three attributes; splits train, val and test",
    "bundled": "1,000 CIFAR-10 test images that come with Quantinel; the same as bundled:test",
    "bundled:calibration": "512 CIFAR-10 images for calibration that come with Quantinel",
    "hf:ID": "a data set of the Hugging Face Hub or its cache, hf:ID:CONFIGURATION (needs datasets)",
    "torchvision:NAME": "a data set of torchvision, torchvision:NAME:DIR (needs torchvision)",
}
"""Form of a specification -> one line about it."""

_SCHEMES = ("cifar10", "gtsrb", "celeba", "bundled", "hf", "torchvision")
_ASSETS = Path(__file__).parent.parent / "assets"
_BUNDLED = {"test": "cifar10_test.npz", "calibration": "cifar10_calibration.npz"}
_GTSRB = {"test": "test.npz", "train": "train_every3rd.npz"}


def load_images(
    spec: str | Path,
    *,
    input_shape: tuple[int, int, int] | None = None,
    split: str = "test",
    limit: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> ImageSet:
    """Read the images that ``spec`` names.

    Args:
        spec: one of `DATA_SOURCES`. A string such as ``bundled`` or ``cifar10:DIR`` always means the source;
            a folder of that name is ``./bundled``, or a `Path`.
        input_shape: (C, H, W) that the model takes, C in {1, 3}. None keeps RGB pictures as they are, all of
            one size.
        split: for sources that have splits; folders and ``.npz`` have none.
        limit: keep a seeded random subset of this size, class-balanced where there are labels. Pictures are
            chosen before they are decoded.
        seed: of that subset.
        progress: called as ``progress(done, total)``, in pictures; once at the end for arrays.

    Returns:
        Images (N, C, H, W) uint8, N >= 1, in the order of the source (folders: sorted by name).

    Raises:
        UsageError: an unknown form, split or option, or an optional package that is missing.
        InputError: the data is missing, corrupt, empty, or does not fit the model.
    """
    if not str(spec):
        raise UsageError(f"no data was named; give one of {', '.join(DATA_SOURCES)}")
    request = Request(printable(spec), input_shape, split, limit, seed, progress)
    scheme, _, rest = spec.partition(":") if isinstance(spec, str) else ("", "", "")
    if scheme == "hf" and rest:
        return load_hugging_face(rest, request)
    if scheme == "torchvision" and rest:
        return load_torchvision(rest, request)
    if scheme == "celeba" and rest:
        return load_celeba(_path(rest), request)
    if scheme in _SCHEMES:
        return _fit(_known_arrays(scheme, rest, request), request)
    return _load_path(_path(str(spec)), request)


def _known_arrays(scheme: str, rest: str, request: Request) -> ImageSet:
    split = request.split
    if scheme == "bundled":
        return _bundled(rest or split)
    if not rest:
        form = next(form for form in DATA_SOURCES if form.startswith(f"{scheme}:"))
        raise UsageError(f"{request.name!r} is not complete; give {form}")
    folder = _path(rest)
    if scheme == "cifar10":
        return load_cifar10(folder, split)
    if split not in _GTSRB:
        raise UsageError(f"gtsrb has the splits train and test, not {split!r}")
    return read_strips(folder / _GTSRB[split], f"gtsrb:{split}")


def _bundled(part: str) -> ImageSet:
    if part not in _BUNDLED:
        raise UsageError(f"the bundled images are bundled:test and bundled:calibration, not bundled:{part}")
    path = _ASSETS / _BUNDLED[part]
    if not path.exists():
        raise InputError(
            f"bundled:{part} is missing from this installation ({printable(path)}); reinstall quantinel, "
            "or give other data, such as cifar10:DIR"
        )
    return read_strips(path, f"bundled:{part}", CLASSES)


def _load_path(path: Path, request: Request) -> ImageSet:
    unknown = f"{request.name} is no known form of data; give one of {', '.join(DATA_SOURCES)}"
    # os.path instead of Path: names that are too long or forbidden do not exist, rather than raise.
    if not os.path.exists(path) and re.match(r"[a-z0-9_]{2,}:", request.name):
        raise UsageError(unknown)
    if os.path.isdir(path):
        files, split = parquet_files(path, request.split)
        if files:
            return load_parquet(files, replace(request, name=f"{request.name}[{split}]") if split else request)
        return load_folder(path, request)
    require_file(path)
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return load_parquet([path], request)
    if suffix != ".npz":
        raise UsageError(unknown)
    with NpzArchive(path) as archive:
        strips = is_strips(archive.names) and "images" not in archive.names
    return _fit(read_strips(path, request.name) if strips else read_image_arrays(path, request.name), request)


def _fit(images: ImageSet, request: Request) -> ImageSet:
    """Subset and channels of arrays, whose size must be that of the model."""
    shape = request.input_shape
    if shape is not None and images.shape[1:] != shape[1:]:
        height, width = images.shape[1:]
        raise InputError(
            f"{images.name}: the images are {width}x{height} pixels, the model takes {shape[2]}x{shape[1]}; "
            "arrays are never resized, give a folder of pictures or resize them yourself"
        )
    chosen = request.choose(images.labels, len(images))
    if chosen is not None:
        images = images.take(chosen)
    if shape is not None and images.shape[0] != shape[0]:
        pixels = images.images
        converted = luma(pixels) if shape[0] == 1 else pixels.expand(-1, 3, -1, -1).contiguous()
        images = replace(images, images=converted)
    if request.progress is not None:
        request.progress(len(images), len(images))
    return images


def _path(text: str) -> Path:
    return Path(os.path.expanduser(text))  # unlike Path.expanduser, it leaves an unknown ~user alone
