"""Second moments of a layer's inputs, as the solvers see them: whole matrices, or the sampled vectors themselves.

A layer with D inputs and O outputs has H = E[x' x'^T] of the quantized prefix, and a gradient at its float weight,
E[(W x' - W x - r) x'^T]: what earlier layers, and r of a residual connection, have put into its outputs. A target that
leans, W + lambda R with R the error of nearest rounding, has that and lambda times the same of R. E[x' x^T] is never
needed beside them, nor is any difference of large numbers.

H has D x D values: 85 MB at D = 4,608 and 2.5 GB at 25,088, where it is also of low rank because fewer vectors are
seen than there are inputs. So a very wide layer keeps its N sampled vectors X' (N, D) and what its outputs are off by
on them instead; H = X'^T X' / N is then never formed, and everything is still exact for these vectors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor


class Gradient(Protocol):
    """E[(V x' - T x - r) x'^T], half the derivative of the layer's output error, kept up to date while V moves."""

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

    def gradient(self, difference: Tensor, lean: float = 0.0) -> Gradient:
        """At V = T + ``difference`` for the target T = W + ``lean`` R, (G, O, D).

        Raises:
            ValueError: ``lean`` is not 0, and what R does on drifted inputs was not collected.
        """

    def excess(self, difference: Tensor) -> float:
        """What the output error of V = W + ``difference`` (G, O, D) exceeds that of W by.

        Written in V - W, because at 8 bits V H V - 2 V E[x' x^T] W loses all digits to cancellation.
        """

    def energy(self, difference: Tensor) -> float:
        """E ||D x'||^2 = tr(D H D^T) of D = ``difference``, (G, O, D)."""

    def outputs(self, begin: int, end: int) -> Moments:
        """The same for a share of each group's output channels."""

    def scaled(self, factor: float) -> Moments:
        """The same for weights that are multiplied by ``factor``."""


@dataclass(frozen=True)
class _Drifting:
    """What both forms know of drift, the difference between the inputs of the two networks.

    Attributes:
        drift: of W, (G, O, ...); None where inputs are the same and nothing is owed.
        error_drift: of R, (G, O, ...); None where inputs are the same, or nobody asked.
        drifts: whether inputs differ.
    """

    drift: Tensor | None = None
    error_drift: Tensor | None = None
    drifts: bool = False

    def _towards(self, start: Tensor, lean: float) -> Tensor:
        """``start``, a tensor of its own, plus the drift of W + ``lean`` R."""
        if lean and self.drifts and self.error_drift is None:
            raise ValueError("what the rounding error does on drifted inputs was not collected; see `LeaningMethod`")
        if self.drift is not None:
            start += self.drift
        if lean and self.error_drift is not None:
            start.add_(self.error_drift, alpha=lean)
        return start

    def outputs(self, begin: int, end: int) -> Self:
        """See `Moments`."""
        parts = [None if value is None else value[:, begin:end] for value in (self.drift, self.error_drift)]
        return replace(self, drift=parts[0], error_drift=parts[1])

    def scaled(self, factor: float) -> Self:
        """See `Moments`; H is that of the inputs."""
        parts = [None if value is None else value * factor for value in (self.drift, self.error_drift)]
        return self if factor == 1 else replace(self, drift=parts[0], error_drift=parts[1])


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


@dataclass(frozen=True, kw_only=True)
class DenseMoments(_Drifting):
    """H as a matrix.

    Attributes:
        gram: H = E[x' x'^T], (G, D, D), of the quantized prefix.
        drift: E[(W x' - W x - r) x'^T], (G, O, D).
        error_drift: E[(R x' - R x) x'^T], (G, O, D).
    """

    gram: Tensor

    def diagonal(self) -> Tensor:
        """See `Moments`."""
        return self.gram.diagonal(dim1=1, dim2=2)

    def block(self, begin: int, end: int) -> Tensor:
        """See `Moments`."""
        return self.gram[:, begin:end, begin:end]

    def gradient(self, difference: Tensor, lean: float = 0.0) -> DenseGradient:
        """See `Moments`."""
        return DenseGradient(self._towards(difference @ self.gram, lean), self.gram)

    def excess(self, difference: Tensor) -> float:
        """See `Moments`."""
        twice = difference @ self.gram
        if self.drift is not None:
            twice.add_(self.drift, alpha=2)
        return float((difference * twice).sum())

    def energy(self, difference: Tensor) -> float:
        """See `Moments`."""
        return float((difference * (difference @ self.gram)).sum())


@dataclass
class SampledGradient:
    """Output errors on the sampled vectors, from which columns are computed when they are asked for.

    Attributes:
        residual: V X'^T - T X^T - r, (G, O, N).
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


@dataclass(frozen=True, kw_only=True)
class SampledMoments(_Drifting):
    """The vectors instead of their moments, for layers with very many inputs.

    Attributes:
        rows: X', (G, N, D), of the quantized prefix.
        drift: W X'^T - W X^T - r, (G, O, N).
        error_drift: R X'^T - R X^T, (G, O, N).
    """

    rows: Tensor

    def diagonal(self) -> Tensor:
        """See `Moments`."""
        squares: Tensor = torch.linalg.vector_norm(self.rows, dim=1).square()
        return squares / self.rows.shape[1]

    def block(self, begin: int, end: int) -> Tensor:
        """See `Moments`."""
        part = self.rows[:, :, begin:end]
        return part.transpose(1, 2) @ part / self.rows.shape[1]

    def gradient(self, difference: Tensor, lean: float = 0.0) -> SampledGradient:
        """See `Moments`."""
        return SampledGradient(self._towards(difference @ self.rows.transpose(1, 2), lean), self.rows)

    def excess(self, difference: Tensor) -> float:
        """See `Moments`."""
        moved = difference @ self.rows.transpose(1, 2)
        after = moved if self.drift is None else moved + 2 * self.drift
        return float((moved * after).sum()) / self.rows.shape[1]

    def energy(self, difference: Tensor) -> float:
        """See `Moments`."""
        return float((difference @ self.rows.transpose(1, 2)).square().sum()) / self.rows.shape[1]
