"""The frequency detector: triggers leave traces in the discrete cosine transform of an image.

Zeng et al., "Rethinking the Backdoor Attacks' Triggers: A Frequency Perspective", ICCV 2021. A small convolutional
network learns to tell DCT coefficients of clean images from those of the same images under simple corruptions that
stand for triggers: a white patch, a noise patch, Gaussian noise, a shadow, another image added. It needs neither model
nor trigger, and generalises to triggers that it never saw if they leave high frequencies; ``low_pass`` below 1 shows it
the lowest frequencies only, which tells how much of a detection rests on the high ones.

Network, corruptions and training are the released ones (292,898 numbers at 32x32; five rounds of ten epochs, batches of
64, Adadelta 0.05, L2 1e-4 on kernels). Deviations: corruptions are drawn anew in every batch instead of once a round;
BatchNorm's running statistics follow faster (0.1 instead of 0.01) for short trainings; patches scale with the image;
the shadow darkens one side of a random line by half [I].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantinel.data.frequency import dct2, low_pass
from quantinel.data.images import ImageSet, as_float
from quantinel.detectors.corruptions import corrupted
from quantinel.detectors.inputs import InputScores, Inspection
from quantinel.errors import UsageError
from quantinel.training.schedule import Schedule
from quantinel.validation import require_choice, require_non_negative, require_positive_integers

_WIDTHS, _DROPS = (32, 64, 128), (0.2, 0.3, 0.4)
_BATCH = 500
Progress = Callable[[int, int, float], None]
"""``progress(steps done, steps in all, loss)``."""


@dataclass(frozen=True)
class FrequencyDetector:
    """Options.

    Attributes:
        epochs: passes over the clean images, every one of them beside a corrupted copy.
        batch_size: images in a batch, half of them corrupted.
        learning_rate: of Adadelta, at the start.
        decay: "constant", as published, or "cosine" to 0, which settles the threshold of short trainings.
        weight_decay: L2 penalty of the kernels; its gradient is twice that.
        low_pass: share of the frequencies of each axis that are looked at, lowest first.
        threshold: probability above which an image is flagged.
    """

    epochs: float = 50.0
    batch_size: int = 64
    learning_rate: float = 0.05
    decay: Literal["constant", "cosine"] = "constant"
    weight_decay: float = 1e-4
    low_pass: float = 1.0
    threshold: float = 0.5

    def __post_init__(self) -> None:
        require_positive_integers(self, "batch_size")
        require_choice(self, "decay", ("constant", "cosine"))
        require_non_negative(self, "epochs", "learning_rate", "weight_decay", "low_pass", "threshold")
        if not self.epochs or self.batch_size < 4:
            raise UsageError("a training needs epochs above 0 and batches of at least 4")
        if not 0 < self.low_pass <= 1:
            raise UsageError(f"low_pass is {self.low_pass}; give a number above 0, at most 1")


def detect_frequency(inspection: Inspection, options: FrequencyDetector) -> InputScores:
    """Probabilities of a network that is trained on the clean images."""
    network = train_frequency_network(inspection.required_clean(options.batch_size), options, seed=inspection.seed)
    return frequency_scores(network, inspection.images, options)


def train_frequency_network(
    clean: ImageSet, options: FrequencyDetector, *, seed: int = 0, progress: Progress | None = None
) -> nn.Module:
    """The detector's network, in evaluation mode: coefficients (N, C, H, W) -> logits (N, 2).

    Args:
        clean: images of the kind that will be inspected, at least 8x8 pixels.
        options: of the training.
        seed: of weights, corruptions and order; the global randomness is left as it is.
        progress: called after every step.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        network = frequency_network(clean.shape)
        optimiser = torch.optim.Adadelta(_groups(network, options), options.learning_rate, rho=0.95, eps=1e-7)
        half = options.batch_size // 2
        steps = max(1, round(options.epochs * len(clean) / half))
        schedule = Schedule(steps, options.learning_rate, decay=options.decay)
        labels = torch.tensor([0] * half + [1] * half)
        for step in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = schedule.rate(step)
            batch = as_float(clean.images[torch.randint(len(clean), (half,), generator=generator)])
            pair = coefficients(torch.cat([batch, corrupted(batch, generator)]), options.low_pass)
            loss = F.cross_entropy(network(pair), labels)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            if progress is not None:
                progress(step + 1, steps, float(loss.detach()))
    return network.eval()


@torch.no_grad()
def frequency_scores(network: nn.Module, images: ImageSet, options: FrequencyDetector) -> InputScores:
    """Probability of a corruption for every image."""
    found = [
        network(coefficients(as_float(batch), options.low_pass)).softmax(1)[:, 1]
        for batch in torch.split(images.images, _BATCH)
    ]
    scores = torch.cat(found)
    return InputScores(scores, scores > options.threshold, options.threshold)


def coefficients(images: Tensor, ratio: float = 1.0) -> Tensor:
    """DCT of float images in [0, 1], after rounding them to bytes 0..255; channels apart, not normalised."""
    return low_pass(dct2(torch.round(images.clamp(0, 1) * 255)), ratio)


def frequency_network(shape: tuple[int, int, int]) -> nn.Sequential:
    """Three blocks of two convolutions, each followed by ELU and BatchNorm, and a linear layer.

    Args:
        shape: (C, H, W) of the images.

    Raises:
        UsageError: images below 8x8.
    """
    channels, height, width = shape
    if min(height, width) < 8:
        raise UsageError(f"images of {width}x{height} are too small for the frequency detector; give at least 8x8")
    layers: list[nn.Module] = []
    for size, drop in zip(_WIDTHS, _DROPS, strict=True):
        for _ in range(2):
            layers += [nn.Conv2d(channels, size, 3, padding=1), nn.ELU(), nn.BatchNorm2d(size, eps=1e-3)]
            channels = size
        layers += [nn.MaxPool2d(2), nn.Dropout(drop)]
    layers += [nn.Flatten(), nn.Linear(channels * (height // 8) * (width // 8), 2)]
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _groups(network: nn.Module, options: FrequencyDetector) -> list[dict[str, object]]:
    kernels = [weight for weight in network.parameters() if weight.ndim == 4]
    others = [weight for weight in network.parameters() if weight.ndim != 4]
    return [{"params": kernels, "weight_decay": 2 * options.weight_decay}, {"params": others}]
