"""The built-in check of a scan: on clean images, does the compressed model still answer as the float model?

An engineering bound, as in `harden`, and no statistical test of harmlessness: below it the compressed model cannot be
deployed whatever the reason. Attacks on accuracy (Hong et al., "Qu-ANTI-zation", NeurIPS 2021) end here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quantinel.audit.checks import agreement_limit
from quantinel.audit.judging import Place, class_name
from quantinel.audit.scan_report import CheckStatus, ClassScore, ScanCheck
from quantinel.data.sampling import MIN_EVALUATION
from quantinel.metrics import Proportion, accuracy, agreement
from quantinel.quantization.scheme import QuantScheme

CLASS_LIMIT = 50.0
"""A class is broken when fewer of its images than this, in percent, keep their answer: its whole interval. The
intervals of all classes that the float model answers hold together in 95 % of cases (Bonferroni)."""


@dataclass(frozen=True)
class Answers:
    """What two models answer to the same images.

    Attributes:
        floating, compressed: (N,) classes.
        num_classes: K.
        different: how many of the images are not copies of another.
        labels: (N,) true classes, or None.
    """

    floating: Tensor
    compressed: Tensor
    num_classes: int
    different: int
    labels: Tensor | None = None

    @property
    def agreement(self) -> Proportion:
        """Images answered alike."""
        return agreement(self.compressed, self.floating)

    def cda(self, answers: Tensor) -> Proportion | None:
        """Accuracy of one of the two; None without labels."""
        return None if self.labels is None else accuracy(answers, self.labels)

    def shares(self, answers: Tensor) -> list[float]:
        """Share of the images that get each class, (K,)."""
        counts = torch.bincount(answers, minlength=self.num_classes)
        return (counts / max(len(answers), 1)).tolist()

    def kept(self, index: int) -> Proportion:
        """Of the images that the float model answers with a class, those that keep it."""
        own = self.floating == index
        return agreement(self.compressed[own], self.floating[own])


def behaviour_check(
    place: Place, answers: Answers, scheme: QuantScheme, class_names: Sequence[str] | None, seconds: float
) -> ScanCheck:
    """Agreement over all images and class by class.

    Images that cannot show a difference (few, copies of each other, or all of one class for the float model) do not
    pass a model.
    """
    rate, limit = answers.agreement, agreement_limit(scheme)
    low, high = rate.interval
    kept = {index: share for index in range(answers.num_classes) if (share := answers.kept(index)).n}
    broken = [index for index, share in kept.items() if share.simultaneous(len(kept))[1] < CLASS_LIMIT]
    silent = sum(Proportion(0, share.n).simultaneous(len(kept))[1] >= CLASS_LIMIT for share in kept.values())
    gains = [after - before for before, after in zip(
        answers.shares(answers.floating), answers.shares(answers.compressed), strict=True
    )]  # fmt: skip
    gaining = max(range(len(gains)), key=gains.__getitem__)
    status: CheckStatus = "pass"
    reason = ""
    if broken or high < limit:
        status = "fail"
    elif rate.percent < limit:
        status, reason = "undecided", f"{rate.n} images are too few to tell; give more"
    elif answers.different < MIN_EVALUATION:
        reason = f"{answers.different} different images say too little; give {MIN_EVALUATION} or more"
        status, reason = "undecided", f"{reason}, 256 are recommended"
    elif len(kept) < 2:
        status, reason = "undecided", "the float model answers one class for all images; give images of its own kind"
    named = ", ".join(class_name(index, class_names) for index in broken)
    detail = (
        f"{rate.percent:.2f} % [{low:.2f}, {high:.2f}] of {rate.n} images are answered as in float, limit {limit:g} %"
    )
    if broken:
        detail += f"; classes that lose most of their images: {named}"
    if silent:
        detail += f"; {silent} of {len(kept)} classes have too few images to be judged alone"
    if gains[gaining] > 0.05:
        detail += f"; class {class_name(gaining, class_names)} gains {100 * gains[gaining]:.1f} points"
    return place.check(
        status,
        judged_by="bound",
        statistic="agreement",
        value=rate.percent,
        threshold=limit,
        suspect_class=class_name(gaining, class_names) if status == "fail" and gains[gaining] > 0.05 else None,
        reason=reason,
        detail=detail + "; the limit is an engineering bound, not a calibrated test",
        by_class=[
            ClassScore(index=index, name=class_name(index, class_names), score=share.percent)
            for index, share in kept.items()
        ],
        seconds=round(seconds, 3),
    )  # fmt: skip
