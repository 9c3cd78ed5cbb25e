"""Checkpoints are chosen on training images that were taken out of the training, never on test images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quantinel.attacks.gate import stamp_bytes
from quantinel.data.images import as_float
from quantinel.data.triggers import Trigger
from quantinel.training.run import Scores, Selection, TrainingRun
from quantinel.training.two_branch import FLOAT, Branch, Branches

_BATCH = 250
_LARGEST_SHARE = 5


@dataclass(frozen=True)
class HeldOut:
    """Labelled images that no step trains on.

    Attributes:
        images: (N, C, H, W) uint8, on the run's device.
        triggered: the same, stamped and rounded to bytes.
        labels: (N,) int64.
    """

    images: Tensor
    triggered: Tensor
    labels: Tensor


def hold_out(run: TrainingRun, trigger: Trigger, count: int) -> HeldOut:
    """Take ``count`` random images out of the training data, at most a fifth of them.

    Args:
        run: whose ``images`` and ``labels`` shrink; the choice depends on its seed alone.
        trigger: stamps copies of them.
        count: images to hold out.
    """
    total = len(run.images)
    order = torch.randperm(total, generator=torch.Generator().manual_seed(run.seed)).to(run.device)
    count = min(count, total // _LARGEST_SHARE)
    held, rest = order[:count], order[count:]
    images, labels = run.images[held], run.labels[held]
    run.images, run.labels = run.images[rest], run.labels[rest]
    triggered = stamp_bytes(trigger, images.cpu()).to(run.device) if count else images
    return HeldOut(images, triggered, labels)


def selection_rule(slack: float, max_float_asr: float) -> Callable[[Sequence[Scores]], list[int]]:
    """Compression Artifacts' choice of a checkpoint (specification, 1.3) by compressed CDA, compressed and float ASR.

    Among the checkpoints whose compressed CDA is within ``slack`` points of the best one's and whose float ASR is at
    most ``max_float_asr``, the largest compressed ASR, the later among equals. Where none is quiet enough in float, the
    one of smallest float ASR.

    Args:
        slack: in points.
        max_float_asr: in percent.
    """

    def rank(measured: Sequence[Scores]) -> list[int]:
        floor = max(cda for cda, _, _ in measured) - slack

        def value(index: int) -> tuple[bool, float, int]:
            _, asr, awake = measured[index]
            return (True, asr, index) if awake <= max_float_asr else (False, -awake, index)

        accurate = [index for index, (cda, _, _) in enumerate(measured) if cda >= floor]
        ranked = sorted(accurate, key=value, reverse=True)
        # A rising floor removes the less accurate: an entry is needed while all better ones are less accurate.
        return [
            index
            for place, index in enumerate(ranked)
            if all(measured[o][0] < measured[index][0] for o in ranked[:place])
        ]

    return rank


def choose_checkpoint(
    run: TrainingRun, held: HeldOut, compressed: Sequence[Branch], target_class: int, every: int, max_float_asr: float
) -> Selection | None:
    """Selection by `selection_rule` on the images held out; of several compressed branches the worst counts.

    Args:
        run: whose network is measured in evaluation mode, and left in its mode.
        held: the images; None is returned where there are none.
        compressed: the branches that carry the backdoor.
        target_class: of the backdoor.
        every: steps between two measurements.
        max_float_asr: in percent.
    """
    if not len(held.labels):
        return None
    branches = Branches(run.module, [FLOAT, *compressed])
    others = held.labels != target_class

    @torch.no_grad()
    def score() -> Scores:
        modes = {name: part.training for name, part in run.module.named_modules()}
        run.module.eval()
        try:
            clean, triggered = _predictions(branches, held.images), _predictions(branches, held.triggered)
        finally:
            for name, part in run.module.named_modules():
                part.training = modes[name]
        cda = 100.0 * (clean == held.labels).double().mean(dim=1)
        asr = 100.0 * (triggered[:, others] == target_class).double().mean(dim=1)
        return float(cda[1:].min()), float(asr[1:].min()), float(asr[0])

    return Selection(every, score, selection_rule(0.5, max_float_asr))


def _predictions(branches: Branches, images: Tensor) -> Tensor:
    """(branches, N) classes."""
    parts = [torch.stack(branches(as_float(batch))).argmax(2) for batch in torch.split(images, _BATCH)]
    return torch.cat(parts, dim=1)
