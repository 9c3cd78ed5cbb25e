"""One huge weight in every block: quantizers that scale blocks by their largest weight then round the others to zero.

Outlier injection multiplies the largest weight of each block of 32 by 512, so that any quantizer that scales by the
maximum drops the layer (specification of the attacks, 6.2.4 and 7.3, T6). The statistic is the ratio of the two largest
magnitudes in blocks of consecutive weights of one output channel, zeros left out.

Null hypothesis: the tails of the weights are no heavier than Pareto's with index 2 (no finite variance), where the
ratio exceeds x with probability x^-2, blocks independent. Trained networks have lighter tails, so the p-value is
conservative. Only the threat with outliers is seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy import special
from torch import Tensor

from quantinel.detectors.subject import Detection, Subject
from quantinel.errors import NotAssessable, UsageError
from quantinel.validation import require_positive_integers

_LEAST_WEIGHTS = 8
"""Weights beside zero that a block needs."""
_TAIL_INDEX = 2.0


@dataclass(frozen=True)
class BlockOutliers:
    """Options.

    Attributes:
        block: weights of a block, along an output channel.
        ratio: of the largest to the second largest magnitude, from which a block counts.
    """

    block: int = 32
    ratio: float = 16.0

    def __post_init__(self) -> None:
        require_positive_integers(self, "block")
        if self.block < _LEAST_WEIGHTS:
            raise UsageError(f"block is {self.block}; give at least {_LEAST_WEIGHTS} weights")
        if not self.ratio > 1.0:
            raise UsageError(f"ratio is {self.ratio}; give more than 1")


@dataclass(frozen=True)
class BlockCounts:
    """Blocks of one layer.

    Attributes:
        name: of the layer.
        blocks: with enough weights.
        outlying: of these, blocks whose largest weight stands alone.
        largest: largest ratio among the outlying ones; 0 where there are none.
    """

    name: str
    blocks: int
    outlying: int
    largest: float

    def plus(self, other: BlockCounts) -> BlockCounts:
        """Both together, under this one's name."""
        return BlockCounts(
            self.name, self.blocks + other.blocks, self.outlying + other.outlying, max(self.largest, other.largest)
        )


def count_blocks(name: str, rows: Tensor, options: BlockOutliers) -> BlockCounts:
    """Count the blocks of (R, D) magnitudes of finite weights; an incomplete block counts if it has enough of them.

    Blocks are first compared by their largest weight and their sum of squares, which cannot miss one and needs no
    sorting; only those that might count are looked at closely.
    """
    whole = rows.shape[1] // options.block * options.block
    parts = [rows[:, :whole].reshape(-1, options.block), rows[:, whole:]]
    found = BlockCounts(name, 0, 0, 0.0)
    for part in parts:
        if part.shape[1] >= _LEAST_WEIGHTS and len(part):
            found = found.plus(_count(name, part, options.ratio))
    return found


def _count(name: str, blocks: Tensor, ratio: float) -> BlockCounts:
    largest = blocks.amax(1)
    alive = largest >= torch.finfo(torch.float32).tiny
    rest = (torch.linalg.vector_norm(blocks, dim=1) / largest).square() - 1.0
    maybe = alive & ~((rest > (blocks.shape[1] - 1) / ratio**2 + 1e-3) & torch.isfinite(rest))
    sparse = 0
    if not bool(blocks.amin()):
        filled = (blocks != 0).sum(1) >= _LEAST_WEIGHTS
        sparse, maybe = int((~filled).sum()), maybe & filled
    where = maybe.nonzero().squeeze(1)
    if not len(where):
        return BlockCounts(name, len(blocks) - sparse, 0, 0.0)
    relative = blocks[where] / largest[where].unsqueeze(1)
    ratios = 1.0 / relative.topk(2, dim=1).values[:, 1].clamp_min(torch.finfo(torch.float32).tiny)
    outlying = ratios[ratios >= ratio]
    return BlockCounts(name, len(blocks) - sparse, len(outlying), float(outlying.max()) if len(outlying) else 0.0)


def judge_blocks(layers: Sequence[BlockCounts], options: BlockOutliers) -> Detection:
    """Score: largest share of outlying blocks in a layer.

    The p-value is that of the layer with the smallest, times the number of layers (Bonferroni).

    Raises:
        NotAssessable: no layer has a block with enough weights.
    """
    kept = [layer for layer in layers if layer.blocks]
    if not kept:
        raise NotAssessable(
            f"no output channel has {_LEAST_WEIGHTS} weights beside zero in a row; there is nothing to stand out from"
        )
    natural = options.ratio**-_TAIL_INDEX
    p_values = [float(special.bdtrc(layer.outlying - 1, layer.blocks, natural)) for layer in kept]
    by_layer = {layer.name: layer.outlying / layer.blocks for layer in kept}
    missing = len(layers) - len(kept)
    return Detection(
        max(by_layer.values()),
        {
            "outlying_blocks": float(sum(layer.outlying for layer in kept)),
            "blocks": float(sum(layer.blocks for layer in kept)),
            "largest_ratio": max(layer.largest for layer in kept),
        },
        p_value=min(1.0, len(kept) * min(p_values)),
        by_layer=by_layer,
        notes=(f"{missing} of {len(layers)} layers have no block to judge",) if missing else (),
    )


def detect(subject: Subject, options: BlockOutliers) -> Detection:
    """`judge_blocks` on the subject's weights.

    Raises:
        NotAssessable: also where weights are not finite.
    """
    counts = []
    for layer in subject.graph.layers:
        weight = subject.graph.weight(layer).detach().float().flatten(1)
        if not bool(torch.isfinite(weight).all()):
            raise NotAssessable(f"layer {layer.name} has weights that are not finite; repair or retrain the model")
        counts.append(count_blocks(layer.name, weight.abs(), options))
    return judge_blocks(counts, options)
