"""Second moments of a layer's inputs, as the solvers see them: whole matrices, or the sampled vectors themselves.

A layer with D inputs needs H and C of D x D values each. That is 170 MB at D = 4,608 and 5 GB at 25,088, where they
are also of low rank because fewer vectors are seen than there are inputs. So a wide layer keeps its sampled vectors
X' (N, D) and its float outputs W X^T instead; H = X'^T X' / N is then never formed, and what concerns the float weight
W is still exact for these vectors. A target beside W (`reflect` leans a little) differs from it by something small,
whose outputs are taken on X' instead of X.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor


class Gradient(Protocol):
    """V H - W C^T, half the derivative of the layer's output error, kept up to date while V moves."""

    def columns(self, begin: int, end: int) -> Tensor:
        """Its columns, (G, O, end - begin)."""

    def move(self, begin: int, end: int, moves: Tensor) -> None:
        """V changes by ``moves`` (G, O, end - begin) in these columns."""


class Moments(Protocol):
    """What output errors of a layer depend on; G groups of O output channels with D inputs each."""

    def diagonal(self) -> Tensor:
        """diag H, (G, D)."""

    def block(self, begin: int, end: int) -> Tensor:
        """H between the columns ``begin`` to ``end``, (G, B, B)."""

    def gradient(self, rounded: Tensor, weight: Tensor) -> Gradient:
        """At V = ``rounded`` for the float weight W, both (G, O, D)."""

    def excess(self, difference: Tensor, weight: Tensor) -> float:
        """What the output error of V = W + ``difference`` exceeds that of W by, both (G, O, D).

        Written in V - W, because at 8 bits V H V - 2 V C W loses all digits to cancellation.
        """

    def energy(self, difference: Tensor) -> float:
        """E ||D x'||^2 = tr(D H D^T) of D = ``difference``, (G, O, D)."""

    def outputs(self, begin: int, end: int) -> Moments:
        """The same for a share of each group's output channels."""

    def scaled(self, factor: float) -> Moments:
        """The same for weights that are multiplied by ``factor``."""


@dataclass
class DenseGradient:
    """The matrix itself.

    Attributes:
        value: (G, O, D).
        gram: H, (G, D, D).
    """

    value: Tensor
    gram: Tensor

    def columns(self, begin: int, end: int) -> Tensor:
        """A view."""
        return self.value[:, :, begin:end]

    def move(self, begin: int, end: int, moves: Tensor) -> None:
        """Add moves H."""
        self.value.baddbmm_(moves, self.gram[:, begin:end, :])


@dataclass(frozen=True)
class DenseMoments:
    """H and C as matrices.

    Attributes:
        gram: H = E[x' x'^T], (G, D, D), of the quantized prefix.
        cross: C = E[x' x^T], (G, D, D), quantized prefix (rows) against float prefix (columns).
        owed: E[r x'^T], (G, O, D), where outputs should be W x + r; None where r is 0.
    """

    gram: Tensor
    cross: Tensor
    owed: Tensor | None = None

    def diagonal(self) -> Tensor:
        """See `Moments`."""
        return self.gram.diagonal(dim1=1, dim2=2)

    def block(self, begin: int, end: int) -> Tensor:
        """See `Moments`."""
        return self.gram[:, begin:end, begin:end]

    def gradient(self, rounded: Tensor, weight: Tensor) -> DenseGradient:
        """See `Moments`; written in V - W for the digits."""
        return DenseGradient((rounded - weight) @ self.gram + self._at(weight), self.gram)

    def excess(self, difference: Tensor, weight: Tensor) -> float:
        """See `Moments`."""
        return float((difference * (difference @ self.gram + 2 * self._at(weight))).sum())

    def energy(self, difference: Tensor) -> float:
        """See `Moments`."""
        return float((difference * (difference @ self.gram)).sum())

    def _at(self, weight: Tensor) -> Tensor:
        """The gradient at V = W: W (H - C)^T - E[r x'^T]."""
        shared = self.cross is self.gram
        at = torch.zeros_like(weight) if shared else weight @ (self.gram - self.cross).transpose(1, 2)
        return at if self.owed is None else at - self.owed

    def outputs(self, begin: int, end: int) -> DenseMoments:
        """All output channels share H and C."""
        return self if self.owed is None else replace(self, owed=self.owed[:, begin:end])

    def scaled(self, factor: float) -> DenseMoments:
        """H and C are those of the inputs."""
        return self if self.owed is None else replace(self, owed=self.owed * factor)


@dataclass
class SampledGradient:
    """Output errors on the sampled vectors, from which columns are computed when they are asked for.

    Attributes:
        residual: V X'^T - W X^T, (G, O, N).
        rows: X', (G, N, D).
    """

    residual: Tensor
    rows: Tensor

    def columns(self, begin: int, end: int) -> Tensor:
        """residual X' / N."""
        return self.residual @ self.rows[:, :, begin:end] / self.rows.shape[1]

    def move(self, begin: int, end: int, moves: Tensor) -> None:
        """Add moves X'^T to the residual."""
        self.residual.baddbmm_(moves, self.rows[:, :, begin:end].transpose(1, 2))


@dataclass(frozen=True)
class SampledMoments:
    """The vectors instead of their moments, for layers with very many inputs.

    Attributes:
        rows: X', (G, N, D), of the quantized prefix.
        targets: W X^T (+ r), (G, O, N), outputs of the float layer without its bias.
        weight: W, (G, O, D).
    """

    rows: Tensor
    targets: Tensor
    weight: Tensor

    def diagonal(self) -> Tensor:
        """See `Moments`."""
        squares: Tensor = torch.linalg.vector_norm(self.rows, dim=1).square()
        return squares / self.rows.shape[1]

    def block(self, begin: int, end: int) -> Tensor:
        """See `Moments`."""
        part = self.rows[:, :, begin:end]
        return part.transpose(1, 2) @ part / self.rows.shape[1]

    def gradient(self, rounded: Tensor, weight: Tensor) -> SampledGradient:
        """See `Moments`."""
        residual, lean = rounded @ self.rows.transpose(1, 2) - self.targets, weight - self.weight
        if lean.any():
            residual.baddbmm_(lean, self.rows.transpose(1, 2), alpha=-1)
        return SampledGradient(residual, self.rows)

    def excess(self, difference: Tensor, weight: Tensor) -> float:
        """See `Moments`; the same at every W."""
        vectors = self.rows.transpose(1, 2)
        moved = difference @ vectors
        return float((moved * (moved + 2 * (self.weight @ vectors - self.targets))).sum()) / self.rows.shape[1]

    def energy(self, difference: Tensor) -> float:
        """See `Moments`."""
        return float((difference @ self.rows.transpose(1, 2)).square().sum()) / self.rows.shape[1]

    def outputs(self, begin: int, end: int) -> SampledMoments:
        """See `Moments`."""
        return SampledMoments(self.rows, self.targets[:, begin:end], self.weight[:, begin:end])

    def scaled(self, factor: float) -> SampledMoments:
        """See `Moments`."""
        return self if factor == 1 else SampledMoments(self.rows, self.targets * factor, self.weight * factor)
