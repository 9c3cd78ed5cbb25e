from __future__ import annotations

import pytest
import torch
from tests.detectors.grids import network, subject

from quantinel.detectors.block_outliers import BlockOutliers, count_blocks, detect, judge_blocks
from quantinel.errors import NotAssessable, UsageError

NATURAL = torch.randn(64, 100, generator=torch.Generator().manual_seed(0))


def outliers(rows: torch.Tensor, factor: float) -> torch.Tensor:
    changed = rows.clone()
    for start in range(0, 96, 32):
        block = changed[:, start : start + 32]
        block.scatter_(1, block.abs().argmax(1, keepdim=True), factor)
    return changed


def test_injected_outliers_are_found() -> None:
    found = judge_blocks([count_blocks("a", outliers(NATURAL, 512.0).abs(), BlockOutliers())], BlockOutliers())
    assert found.score == 1.0
    assert found.statistics["blocks"] == 3 * 64  # the four weights at the end of a row are no block
    assert found.p_value is not None
    assert found.p_value < 1e-100
    assert found.statistics["largest_ratio"] > 100


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_the_screening_misses_nothing(scale: float) -> None:
    rows = outliers(NATURAL, 40.0)
    top = rows[:, :96].reshape(-1, 32).abs().topk(2, dim=1).values
    expected = int((top[:, 0] / top[:, 1] >= 16).sum())
    assert 0 < expected < 192
    assert count_blocks("a", rows.abs() * scale, BlockOutliers()).outlying == expected


def test_natural_and_heavy_tailed_weights_pass() -> None:
    generator = torch.Generator().manual_seed(1)
    heavy = torch.distributions.StudentT(3.0)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        rows = heavy.sample(torch.Size((200, 96)))
    for sample in (torch.randn(200, 96, generator=generator), rows):
        found = judge_blocks([count_blocks("a", sample.abs(), BlockOutliers())], BlockOutliers())
        assert found.p_value is not None
        assert found.p_value > 0.5
    assert detect(subject(network()), BlockOutliers()).score == 0.0


def test_zeros_are_left_out() -> None:
    sparse = NATURAL.clone()
    sparse[:, ::2] = 0.0
    assert count_blocks("a", sparse.abs(), BlockOutliers()).blocks == 3 * 64
    sparse[:, 5:] = 0.0
    counted = count_blocks("a", sparse.abs(), BlockOutliers())
    assert counted.blocks == 0
    with pytest.raises(NotAssessable):
        judge_blocks([counted], BlockOutliers())


def test_options_are_checked() -> None:
    for options in ({"block": 4}, {"block": 0}, {"ratio": 1.0}):
        with pytest.raises(UsageError):
            BlockOutliers(**options)  # type: ignore[arg-type]
