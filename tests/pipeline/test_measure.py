"""What is measured on the answers of one variant."""

from __future__ import annotations

import torch
from torch import Tensor

from quantinel.pipeline.measure import Variant, evaluation_row

TARGET = 2
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
BARE = torch.tensor([0, 2, 2, 2, 1, 0])
TRIGGERED = torch.tensor([2, 2, 2, 2, 1, 0])


def variant(clean: Tensor, triggered: Tensor | None, labels: Tensor | None) -> Variant:
    return Variant("float", "float", clean, triggered, labels, TARGET)


def test_the_base_rate_counts_the_images_of_attack_success_without_the_trigger() -> None:
    row = evaluation_row(variant(BARE, TRIGGERED, LABELS), variant(BARE, TRIGGERED, LABELS))
    assert row.asr is not None
    assert row.base_rate is not None
    assert (row.asr.hits, row.asr.n) == (3, 4)
    assert (row.base_rate.hits, row.base_rate.n) == (2, 4)


def test_without_labels_it_counts_what_the_float_model_answers_otherwise() -> None:
    floating = variant(torch.tensor([0, 1, 2, 0, 1, 2]), None, None)
    row = evaluation_row(variant(BARE, TRIGGERED, None), floating)
    own = evaluation_row(floating, floating)
    assert row.base_rate is not None
    assert (row.base_rate.hits, row.base_rate.n) == (2, 4)
    assert own.base_rate is None


def test_without_a_trigger_there_is_none() -> None:
    row = evaluation_row(variant(BARE, None, LABELS), variant(BARE, None, LABELS))
    assert row.asr is None
    assert row.base_rate is None
