"""Search for a trigger that works on one network and not on another: the optimiser.

After Neural Cleanse (Wang et al., IEEE S&P 2019): mask m and pattern p of x' = (1 - m) x + m p are optimised by
gradient so that x' is answered with a class c and the mask stays small. The difference: two networks look at x', and
the float network must not obey,

    L = CE(Q(x'), c) - log(1 - p_F(c | x')) + weight size.

The additive form x' = x + d has the root mean square of d as its size. All starts of a chunk are optimised in one
batch; the networks' weights need no gradients, and the float network is passed backward only for images that it would
give away. Triggers are compared by L on images that the search did not use, after equal effort: networks of few bits
obey some large patch for every class, so the gap between the two networks alone says little, and a threshold on it
makes the size jump.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from quantinel.inversion.budget import Budget
from quantinel.model.graph import FloatGraph

Form = Literal["mask", "additive"]
Network = Callable[[Tensor], Tensor]

SIZE_WEIGHTS: Mapping[Form, float] = {"mask": 10.0, "additive": 20.0}
_RATES: Mapping[Form, float] = {"mask": 0.1, "additive": 0.02}
_BETAS = (0.9, 0.99)
_SHUT = 1e-3
"""Mask and colours stay this far from 0 and 1 where a search begins: logits move from there."""
_LARGEST_LOSS = 10.0
_LARGEST_ANSWER = 1 - 1e-4
_NOTICED = 0.01
"""A float network that gives the class less than this adds nothing to the gradient worth a backward pass."""
_LEAST_IMAGES = 8
_FEWEST_STEPS = 10
_CHUNK_VALUES = 1 << 20
"""Float values of one batch of stamped images (4 MiB); the networks' activations are some hundred times that."""


@dataclass(frozen=True)
class Effort:
    """How hard to search.

    Attributes:
        steps: of Adam.
        images: per start and step.
    """

    steps: int
    images: int


Efforts = tuple[Effort, Effort]
"""Of the short searches from every start, and of the long one from the best of what they found."""


@dataclass(frozen=True)
class Start:
    """Where a search begins.

    Attributes:
        target: the class.
        mask: (1, H, W) strictly between 0 and 1; not used by the additive form.
        pattern: (C, H, W): colours strictly between 0 and 1, or the perturbation itself.
    """

    target: int
    mask: Tensor
    pattern: Tensor


@dataclass(frozen=True)
class Trigger:
    """What was found for one class; figures are of images that the search did not use.

    Attributes:
        target: the class.
        loss: L; lower is a better trigger.
        size: of the mask as a share of the image, or root mean square of the perturbation.
        gap: share of the images of other classes that the compressed network answers with the class, less the float
            network's.
        mask: (1, H, W) in [0, 1]; all ones for the additive form.
        pattern: (C, H, W): colours, or the perturbation itself.
        form: of the trigger.
        steps: that the search took.
    """

    target: int
    loss: float
    size: float
    gap: float
    mask: Tensor
    pattern: Tensor
    form: Form
    steps: int

    def stamp(self, images: Tensor) -> Tensor:
        """Triggered images (N, C, H, W) in [0, 1]."""
        return stamped(images, self.mask, self.pattern, self.form)

    def as_start(self) -> Start:
        """Where a longer search goes on."""
        if self.form == "additive":
            return Start(self.target, self.mask, self.pattern)
        return Start(self.target, *(part.clamp(_SHUT, 1 - _SHUT) for part in (self.mask, self.pattern)))


class Inversion:
    """A compressed network against the float network.

    Args:
        graph: the float network.
        images: (N, C, H, W) float; one half for the search, the other to measure. Fewer than eight serve for both.
        form: of the trigger.
        seed: of batches: equal seeds make searches on two compressed networks a matched pair.
    """

    def __init__(self, graph: FloatGraph, images: Tensor, form: Form, seed: int) -> None:
        self.graph, self.form, self.seed = graph, form, seed
        half = len(images) // 2 if len(images) >= _LEAST_IMAGES else 0
        self.images, self.held_out = images[half:], images[: half or len(images)]
        with torch.no_grad():
            self.answers, self.held_answers = (graph.module(part).argmax(1) for part in (self.images, self.held_out))

    def search(
        self, compressed: Mapping[str, Tensor], starts: Sequence[Start], effort: Effort, budget: Budget | None = None
    ) -> list[Trigger]:
        """A trigger from every start, in chunks that fit into memory, with as many steps for each.

        Args:
            compressed: weights of the compressed network, by buffer.
            starts: where to begin.
            effort: of each.
            budget: when it is used up, the search stops where it is, but not before 10 steps.
        """

        def network(images: Tensor) -> Tensor:
            logits: Tensor = functional_call(self.graph.module, dict(compressed), (images,))
            return logits

        room = max(1, _CHUNK_VALUES // (effort.images * self.images[0].numel()))
        chunks = [starts[first : first + room] for first in range(0, len(starts), room)]
        found = self._chunk(network, chunks[0], effort, (budget or Budget()).share(len(chunks)))
        equal = Effort(found[0].steps, effort.images)
        return [*found, *(trigger for chunk in chunks[1:] for trigger in self._chunk(network, chunk, equal, Budget()))]

    def refine(
        self, compressed: Mapping[str, Tensor], starts: Sequence[Start], efforts: Efforts, budget: Budget | None = None
    ) -> tuple[Trigger, Efforts]:
        """A short search from every start, then a long one from the best trigger of those.

        Args:
            compressed: weights of the compressed network, by buffer.
            starts: where to begin.
            efforts: of both.
            budget: the short searches get half of it.

        Returns:
            The trigger, and the efforts that were made.
        """
        within = budget or Budget()
        short = self.search(compressed, starts, efforts[0], within.share(2))
        best = min(short, key=lambda trigger: trigger.loss)
        (long,) = self.search(compressed, [best.as_start()], efforts[1], within)
        return long, (replace(efforts[0], steps=short[0].steps), replace(efforts[1], steps=long.steps))

    def _chunk(self, network: Network, starts: Sequence[Start], effort: Effort, budget: Budget) -> list[Trigger]:
        generator = torch.Generator().manual_seed(self.seed)
        masks = torch.stack([start.mask for start in starts])
        patterns = torch.stack([start.pattern for start in starts])
        if self.form == "mask":
            masks, patterns = masks.logit().requires_grad_(), patterns.logit()
        patterns.requires_grad_()
        moved = [masks, patterns] if self.form == "mask" else [patterns]
        optimiser = torch.optim.Adam(moved, _RATES[self.form], betas=_BETAS)
        rows = torch.arange(len(starts)).repeat_interleave(effort.images)
        targets = torch.tensor([start.target for start in starts])[rows]
        steps = 0
        while steps < effort.steps and (steps < _FEWEST_STEPS or budget.remaining()):
            steps += 1
            chosen = torch.randint(len(self.images), (effort.images,), generator=generator).repeat(len(starts))
            mask, pattern = shown(masks, patterns, self.form)
            triggered = stamped(self.images[chosen], mask[rows], pattern[rows], self.form)
            counted = self.answers[chosen] != targets
            loss = (_obedience(network(triggered), targets) * counted).sum() / effort.images
            with torch.no_grad():
                follows = counted & (_likelihood(self.graph.module(triggered), targets) > _NOTICED)
            if follows.any():
                by_float = _likelihood(self.graph.module(triggered[follows]), targets[follows])
                loss = loss + _betrayal(by_float).sum() / effort.images
            loss = loss + SIZE_WEIGHTS[self.form] * _sizes(mask, pattern, self.form).sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        with torch.no_grad():
            mask, pattern = shown(masks, patterns, self.form)
            sizes = _sizes(mask, pattern, self.form).tolist()
            return [
                self._measured(network, start.target, size, mask[index].clone(), pattern[index].clone(), steps)
                for index, (start, size) in enumerate(zip(starts, sizes, strict=True))
            ]

    def _measured(
        self, network: Network, target: int, size: float, mask: Tensor, pattern: Tensor, steps: int
    ) -> Trigger:
        """The figures of a trigger on held-out images of other classes; of all where there are none."""
        others = self.held_out[self.held_answers != target]
        others = others if len(others) else self.held_out
        triggered = stamped(others, mask, pattern, self.form)
        by_compressed, by_float = network(triggered), self.graph.module(triggered)
        targets = torch.full((len(others),), target)
        losses = _obedience(by_compressed, targets) + _betrayal(_likelihood(by_float, targets))
        won = (by_compressed.argmax(1) == target).double() - (by_float.argmax(1) == target).double()
        loss = float(losses.mean()) + SIZE_WEIGHTS[self.form] * size
        return Trigger(target, loss, size, float(won.mean()), mask, pattern, self.form, steps)


def _obedience(logits: Tensor, targets: Tensor) -> Tensor:
    """(N,) CE(Q(x'), c), bounded."""
    return F.cross_entropy(logits, targets, reduction="none").clamp(max=_LARGEST_LOSS)


def _likelihood(logits: Tensor, targets: Tensor) -> Tensor:
    """(N,) p(c | x')."""
    return logits.softmax(1).gather(1, targets[:, None]).squeeze(1)


def _betrayal(likelihood: Tensor) -> Tensor:
    """(N,) -log(1 - p_F(c | x')), bounded."""
    return -torch.log1p(-likelihood.clamp(max=_LARGEST_ANSWER))


def shown(masks: Tensor, patterns: Tensor, form: Form) -> tuple[Tensor, Tensor]:
    """Mask and pattern as they are used; both are optimised as logits in the mask form."""
    if form == "additive":
        return torch.ones_like(masks), patterns
    return masks.sigmoid(), patterns.sigmoid()


def stamped(images: Tensor, mask: Tensor, pattern: Tensor, form: Form) -> Tensor:
    if form == "additive":
        return (images + pattern).clamp(0, 1)
    return (1 - mask) * images + mask * pattern


def _sizes(mask: Tensor, pattern: Tensor, form: Form) -> Tensor:
    """(k,) share of the image, or root mean square."""
    if form == "additive":
        return pattern.square().flatten(1).mean(1).add(1e-12).sqrt()
    return mask.flatten(1).mean(1)
