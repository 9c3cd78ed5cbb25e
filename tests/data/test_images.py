from __future__ import annotations

import pytest
import torch

from quantinel.data.images import ImageSet, as_float
from quantinel.errors import InputError, UsageError


def image_set(count: int = 6, classes: int = 3) -> ImageSet:
    pixels = torch.arange(count * 3 * 4 * 4).reshape(count, 3, 4, 4).to(torch.uint8)
    return ImageSet(pixels, torch.arange(count) % classes, "test")


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 3, 4, 4), None, "uint8"),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), None, "uint8"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), "one label an image"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2), "int64"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, -1]), "negative"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 2]), "no name"),
    ],
    ids=["float", "three axes", "label count", "float labels", "negative label", "unnamed label"],
)
def test_invalid_sets_are_refused(images: torch.Tensor, labels: torch.Tensor | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ImageSet(images, labels, "test", ("cat", "dog"))


def test_floats_are_a_new_tensor() -> None:
    floats = torch.tensor([255.0])
    assert as_float(floats).item() == 1.0
    assert floats.item() == 255.0


def test_batches_cover_the_set_in_order() -> None:
    images = image_set(5)
    assert torch.equal(torch.cat(list(images.batches(2))), images.as_float())
    with pytest.raises(UsageError, match="batch size"):
        next(images.batches(0))


def test_split_is_disjoint_and_complete() -> None:
    images = image_set(6)
    first, rest = images.split(2, torch.Generator().manual_seed(0))
    assert (len(first), len(rest)) == (2, 4)
    assert torch.cat([first.images, rest.images]).unique(dim=0).shape[0] == 6
    with pytest.raises(UsageError, match="ask for fewer"):
        images.split(7, torch.Generator())


def test_hash_depends_on_pixels_and_labels() -> None:
    images = image_set()
    assert images.labels is not None
    relabeled = ImageSet(images.images, images.labels.flip(0), "test")
    inverted = ImageSet(255 - images.images, images.labels, "test")
    unlabeled = ImageSet(images.images, None, "test")
    assert len({each.sha256() for each in (images, relabeled, inverted, unlabeled)}) == 4
    assert images.sha256() == image_set().sha256()
