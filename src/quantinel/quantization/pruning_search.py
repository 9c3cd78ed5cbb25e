"""Layer-wise pruning rates for an overall sparsity, by simulated annealing.

In the spirit of AutoCompress (Liu et al., AAAI 2020) as deployers run it: rates that meet the overall sparsity are
perturbed, the network is pruned with them and measured, and a worse one is taken with a probability that falls with the
temperature. The rates that the authors of Compression Artifacts found this way are not available; these are searched
anew, on the network and the images that are given.

Deviations, and why: the temperature is in points of accuracy and falls to a thirtieth, so that the search ends by
descending (a published implementation accepts nearly every step); the uniform rates are the start, so that the
result is never worse than them; without labels, agreement with the unpruned network is measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from quantinel.data.images import ImageSet, as_float
from quantinel.quantization.pruning import PruningScheme, layer_rates, prunable, prune

HIGHEST_RATE = 0.9
"""No layer loses more of its filters."""
_HOT, _COLD = 3.0, 0.1
"""Temperatures of the first and the last step, in points of accuracy."""
_PERTURBATION = 0.35
"""Largest change of a layer's rate at the first step."""
_BATCH = 250


def scaled_rates(rates: Tensor, sizes: Tensor, target: float) -> Tensor:
    """Rates times the one factor that removes the share ``target`` of all weights, none above `HIGHEST_RATE`.

    Args:
        rates: (layers,) non-negative.
        sizes: (layers,) numbers of weights.
        target: overall share, at most `HIGHEST_RATE`.
    """
    rates = rates.clamp(min=1e-6)
    low, high = 0.0, HIGHEST_RATE / float(rates.min())
    for _ in range(60):  # the removed share grows with the factor
        middle = (low + high) / 2
        share = float(((rates * middle).clamp(max=HIGHEST_RATE) * sizes).sum() / sizes.sum())
        low, high = (middle, high) if share < target else (low, middle)
    return (rates * high).clamp(max=HIGHEST_RATE)


def anneal(
    sizes: Sequence[int], target: float, score: Callable[[tuple[float, ...]], float], *, steps: int, seed: int
) -> tuple[float, ...]:
    """The best rates that were measured.

    Args:
        sizes: weights of every layer.
        target: overall share to remove.
        score: percent for given rates; higher is better.
        steps: measurements after the first one.
        seed: of perturbations and acceptance.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = torch.tensor(sizes, dtype=torch.float64)

    def rounded(rates: Tensor) -> tuple[float, ...]:
        return tuple(round(rate, 4) for rate in rates.tolist())

    current = torch.full_like(weights, target)
    value = best_value = score(rounded(current))
    best = rounded(current)
    for step in range(steps):
        cooling = step / max(1, steps - 1)
        temperature = _HOT * (_COLD / _HOT) ** cooling
        reach = _PERTURBATION * (1.0 - 0.9 * cooling)
        shift = (2.0 * torch.rand(len(weights), generator=generator, dtype=torch.float64) - 1.0) * reach
        luck = float(torch.rand(1, generator=generator))
        proposal = scaled_rates((current + shift).clamp(0.0, HIGHEST_RATE), weights, target)
        measured = score(rounded(proposal))
        if measured >= value or luck < math.exp((measured - value) / temperature):
            current, value = proposal, measured
        if measured > best_value:
            best, best_value = rounded(proposal), measured
    return best


def search_rates(
    module: nn.Module, images: ImageSet, target: float, *, seed: int = 0, steps: int = 40
) -> PruningScheme:
    """Layer-wise filter rates for an overall sparsity, with the best accuracy that was found.

    Args:
        module: float network in evaluation mode; images in [0, 1] -> logits. Not changed.
        images: held-out training images, never test images; without labels, the network's own answers count.
        target: share of all convolution weights to remove, at most `HIGHEST_RATE`.
        seed: of the search.
        steps: networks to measure.
    """
    sizes = [weight.numel() for weight in prunable(module, "l1-filters").values()]
    labels = _answers(module, images.images) if images.labels is None else images.labels

    def score(rates: tuple[float, ...]) -> float:
        pruned = prune(module, PruningScheme("l1-filters", rates))
        return 100.0 * float((_answers(pruned, images.images) == labels).double().mean())

    return PruningScheme("l1-filters", anneal(sizes, min(target, HIGHEST_RATE), score, steps=steps, seed=seed))


def resolved(scheme: PruningScheme, module: nn.Module, images: ImageSet, *, seed: int = 0) -> PruningScheme:
    """``scheme`` with a rate for every layer, searched where it asks for that."""
    if scheme.searched:
        return search_rates(module, images, scheme.rates[0], seed=seed)
    layer_rates(scheme, prunable(module, scheme.method))
    return scheme


@torch.inference_mode()
def _answers(module: nn.Module, images: Tensor) -> Tensor:
    """Predicted classes (N,) of uint8 images, on the CPU; the module runs where its weights are."""
    device = next(module.parameters()).device
    parts = [
        module(as_float(part.to(device)).contiguous(memory_format=torch.channels_last)).argmax(1).cpu()
        for part in torch.split(images, _BATCH)
    ]
    return torch.cat(parts)
