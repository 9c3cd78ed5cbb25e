from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantinel.data.images import ImageSet
from quantinel.data.sampling import balanced_indices, split_calibration
from quantinel.errors import InputError, UsageError


def numbered(count: int, labels: torch.Tensor | None) -> ImageSet:
    """Images whose first pixel tells which they are."""
    images = torch.zeros(count, 1, 1, 2, dtype=torch.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = torch.arange(count) % 256, torch.arange(count) // 256
    return ImageSet(images, labels, "test")


def numbers(images: ImageSet) -> set[int]:
    return {int(image[0, 0, 0]) + 256 * int(image[0, 0, 1]) for image in images.images}


label_lists = st.lists(st.integers(0, 6), min_size=1, max_size=80)


@settings(deadline=None)
@given(label_lists, st.data())
def test_indices_are_ascending_and_as_balanced_as_the_classes_allow(labels: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(labels)))
    tensor = torch.tensor(labels)
    chosen = balanced_indices(tensor, len(labels), count, seed=data.draw(st.integers(0, 9)))
    assert len(chosen) == count
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    taken = tensor[chosen].bincount(minlength=7)
    left = tensor.bincount(minlength=7) - taken
    # No class may have given more than one image beyond a class that still had some to give.
    assert all(taken.max() <= taken[c] + 1 for c in range(7) if left[c] > 0)


def test_indices_depend_on_the_seed_alone() -> None:
    labels = torch.arange(1000) % 10
    torch.manual_seed(1)
    first = balanced_indices(labels, 1000, 100, seed=3)
    state = torch.get_rng_state()
    again = balanced_indices(labels, 1000, 100, seed=3)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first, again)
    assert not torch.equal(first, balanced_indices(labels, 1000, 100, seed=4))


@settings(deadline=None)
@given(st.integers(4, 300), st.integers(2, 300), st.booleans())
def test_calibration_never_overlaps_evaluation(total: int, calibration: int, labelled: bool) -> None:
    images = numbered(total, torch.arange(total) % 5 if labelled else None)
    used, rest = split_calibration(images, calibration, seed=0)
    assert not numbers(used) & numbers(rest)
    assert numbers(used) | numbers(rest) == set(range(total))
    kept = total // 5 if total < 64 else max(total // 5, 32)
    assert len(used) == min(calibration, total // 2 if labelled else total - kept)


def test_labelled_split_is_balanced() -> None:
    used, _ = split_calibration(numbered(1000, torch.arange(1000) % 10), 256, seed=0)
    assert used.labels is not None
    assert set(used.labels.bincount().tolist()) == {25, 26}


@pytest.mark.parametrize("calibration", [-1, 0, 1])
def test_too_few_asked_for(calibration: int) -> None:
    with pytest.raises(UsageError, match=r"at least 2 are needed and 256 recommended"):
        split_calibration(numbered(100, None), calibration, seed=0)


@pytest.mark.parametrize(("total", "labelled"), [(1, False), (3, True)], ids=["unlabeled", "labelled"])
def test_too_small_a_set(total: int, labelled: bool) -> None:
    labels = torch.zeros(total, dtype=torch.int64) if labelled else None
    with pytest.raises(InputError, match="at least"):
        split_calibration(numbered(total, labels), 2, seed=0)
