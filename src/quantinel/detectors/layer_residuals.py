"""One pass over the weights for all residual tests: r = w/s - round(w/s) on the deployment grid and on placebo grids.

Attacks act on the grid that they were made for, and on no other, so grids whose scale is some percent off show what the
same weights look like where nobody aimed (specification of the attacks, 7, "placebo-grid contrast"). They also carry
whatever is natural: cusps of the density at 4 bits, the digits of a cast. Every layer is reduced to counts in bins of
a thousandth of a step and to a sum for each output channel; the tests read these and never the weights.

Left out, on all grids alike: zeros (pruned), the largest weight of each scale (it fixes the grid, so it has no
residual of its own) and weights that the grid clips.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quantinel.detectors.weight_precision import FLOAT32, dithered, lattice_levels, significand_bits, unit_in_last_place
from quantinel.errors import NotAssessable
from quantinel.model.graph import FloatGraph, Layer
from quantinel.quantization.ranges import weight_scales
from quantinel.quantization.rounding import ON_GRID
from quantinel.quantization.scheme import QuantScheme

BINS = 1000
"""Bins of width 0.001 around the circle of residuals, where -0.5 and 0.5 are one point; bin 0 is that point."""
PLACEBO_FACTORS = tuple(
    round(1.0 + sign * percent / 100, 2) for percent in (5, 7, 9, 11, 13, 15, 17, 19) for sign in (-1, 1)
)
_PIECE = 1 << 18
_LATTICE_ROWS = 16


@dataclass(frozen=True)
class Piece:
    """Some weights of a layer.

    Attributes:
        weights: (R, D) float32, finite.
        scale: (R, 1) of the deployment grid.
        largest: (R, 1), max|w| that the scale stands for.
    """

    weights: Tensor
    scale: Tensor
    largest: Tensor


@dataclass(frozen=True)
class LayerResiduals:
    """Residuals of one layer; row 0 of a tensor is the deployment grid, the others are `PLACEBO_FACTORS`.

    Attributes:
        name: of the layer.
        counts: (1 + P, 1000) weights by bin; bin i is r = (i - 500) / 1000.
        sums: (1 + P, R) sum of r over the weights of every output channel that was read.
        rows: (R,) weights behind these sums.
        weights: behind the counts.
        left_out: zeros, largest and clipped weights.
        coded: weights that are nearest to another code than 0.
        on_grid: of these, weights that lie on the deployment grid within the digits they are stored with.
        on_grid_chance: how many would by chance.
        significand_bits: digits the weights are stored with: 24, or 11 and 8 for casts.
        levels: of weights that were quantized before (127 for int8), else None.
    """

    name: str
    counts: Tensor
    sums: Tensor
    rows: Tensor
    weights: int
    left_out: int
    coded: int
    on_grid: int
    on_grid_chance: float
    significand_bits: int
    levels: int | None


def measure(
    name: str,
    pieces: Iterable[Piece],
    scheme: QuantScheme,
    generator: torch.Generator,
    bits: int = FLOAT32,
    levels: int | None = None,
) -> LayerResiduals:
    """Count the residuals of one layer.

    Args:
        name: of the layer.
        pieces: its weights, or an even sample of them, in parts that fit into memory.
        scheme: the deployment grid.
        generator: of the dither.
        bits: see `significand_bits`.
        levels: see `lattice_levels`.
    """
    factors = (1.0, *PLACEBO_FACTORS)
    counts = torch.zeros(len(factors), BINS, dtype=torch.int64)
    sums: list[Tensor] = []
    rows: list[Tensor] = []
    left_out = codes = on_grid = 0
    chance = 0.0
    for piece in pieces:
        weights, scale = piece.weights, piece.scale
        steps = weights / scale
        has_grid = piece.largest >= 0.5 * scheme.levels * scale  # not where all weights are too small for a scale
        keep = (weights != 0) & (weights.abs() < piece.largest) & (steps.abs() <= scheme.levels) & has_grid
        steps = torch.where(keep, steps, 0.0)  # a scale may underflow, and quotients be anything
        tolerance = torch.full_like(steps, ON_GRID)
        if bits < FLOAT32:
            tolerance += torch.where(keep, 0.5 * unit_in_last_place(weights, bits) / scale, 0.0)
        coded = keep & (steps.abs() >= 0.5)  # a weight of next to nothing is near code 0 in any network
        on_grid += int((((steps - torch.round(steps)).abs() <= tolerance) & coded).sum())
        chance += float(((2 * tolerance).clamp(max=1.0) * coded).sum())
        codes += int(coded.sum())
        if bits < FLOAT32:
            steps = torch.where(keep, dithered(weights, bits, generator) / scale, 0.0)
        used = keep.float()
        dump = (1.0 - used) * (BINS + 1)
        piece_sums = []
        for index, factor in enumerate(factors):
            residual = steps if factor == 1.0 else steps / factor
            residual = (residual - torch.round(residual)) * used
            piece_sums.append(residual.sum(1))
            bins = (residual * BINS + (BINS / 2 + 0.5)).mul_(used).add_(dump).to(torch.int32)
            found = torch.bincount(bins.flatten(), minlength=BINS + 2)
            counts[index] += found[:BINS]
            counts[index, 0] += found[BINS]
        sums.append(torch.stack(piece_sums))
        rows.append(used.sum(1))
        left_out += keep.numel() - int(keep.sum())
    return LayerResiduals(
        name,
        counts.int(),
        torch.cat(sums, 1) if sums else torch.zeros(len(factors), 0),
        torch.cat(rows) if rows else torch.zeros(0),
        int(counts[0].sum()),
        left_out,
        codes,
        on_grid,
        chance,
        bits,
        levels,
    )


def graph_residuals(graph: FloatGraph, scheme: QuantScheme, seed: int = 0) -> tuple[LayerResiduals, ...]:
    """Residuals of every layer of a folded float network, on the grid that deployment gives it.

    Args:
        graph: the network.
        scheme: the deployment grid.
        seed: of the dither.

    Raises:
        NotAssessable: weights that are not finite.
    """
    found = []
    generator = torch.Generator().manual_seed(seed)
    for layer in graph.layers:
        weight = graph.weight(layer).detach().float()
        if not bool(torch.isfinite(weight).all()):
            raise NotAssessable(f"layer {layer.name} has weights that are not finite; repair or retrain the model")
        scale = weight_scales(weight, scheme).reshape(-1, 1)
        largest = weight.flatten(1).abs().amax(1, keepdim=True)
        largest = largest if len(scale) > 1 else largest.amax(0, keepdim=True)
        rows, factor = stored_rows(graph, layer)
        alive = factor.flatten() != 0
        rows, factor = rows[alive], factor[alive]
        scale, largest = (value.expand(len(alive), 1)[alive] / factor for value in (scale, largest))
        bits = significand_bits(rows)
        levels = lattice_levels(rows[:: max(1, len(rows) // _LATTICE_ROWS)], bits)
        found.append(measure(layer.name, _pieces(rows, scale, largest), scheme, generator, bits, levels))
    return tuple(found)


def stored_rows(graph: FloatGraph, layer: Layer) -> tuple[Tensor, Tensor]:
    """Weights as the file had them, and what folding multiplied every output channel with.

    Args:
        graph: folded network.
        layer: of it.

    Returns:
        (O, D) weights, zero for channels that a dead BatchNorm removed, and (O, 1) the size of the factor, 0 for
        these channels; 1 without BatchNorm.
    """
    rows = graph.weight(layer).detach().float().flatten(1)
    norm = graph.batch_norms.get(layer.name)
    if norm is None:
        return rows, torch.ones(len(rows), 1)
    factor = norm.factor.abs().float().reshape(-1, 1)
    stored = torch.where(factor > 0, rows / factor, 0.0)
    usable = torch.isfinite(stored).all(1, keepdim=True)  # the quotient of huge numbers overflows
    return torch.where(usable, stored, rows), torch.where(usable, factor, 1.0)


def _pieces(rows: Tensor, scale: Tensor, largest: Tensor) -> Iterable[Piece]:
    """Whole rows, so that sums by channel are complete."""
    step = max(1, _PIECE // max(rows.shape[1], 1))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        yield Piece(rows[part], scale[part], largest[part])


def assessable(layers: Sequence[LayerResiduals], at_least: int = 1) -> tuple[list[LayerResiduals], tuple[str, ...]]:
    """Layers whose residuals can say something, and sentences on those that cannot.

    Args:
        layers: of one model.
        at_least: weights.

    Raises:
        NotAssessable: there are none.
    """
    kept = [layer for layer in layers if layer.levels is None and layer.weights >= at_least]
    quantized = [layer for layer in layers if layer.levels is not None]
    small = len(layers) - len(kept) - len(quantized)
    notes = []
    if quantized:
        levels = sorted({layer.levels for layer in quantized if layer.levels is not None})
        notes.append(
            f"{len(quantized)} of {len(layers)} layers hold weights that were already quantized "
            f"({levels[0]} to {levels[-1]} levels on each side); their residuals say nothing"
        )
    if small:
        notes.append(f"{small} of {len(layers)} layers have fewer than {at_least} weights to judge")
    casts = [layer for layer in kept if layer.significand_bits < FLOAT32]
    if casts:
        notes.append(
            f"{len(casts)} of {len(layers)} layers hold weights cast to {min(c.significand_bits for c in casts)} "
            "significand bits; marks finer than the cast are gone from them"
        )
    if not kept:
        reason = "; ".join(notes) or "the model has no layers with weights"
        raise NotAssessable(f"{reason}; give the float model that was trained")
    return kept, tuple(notes)


def counts_of(layers: Sequence[LayerResiduals]) -> Tensor:
    """(1 + P, 1000) weights by bin of several layers together."""
    return torch.stack([layer.counts for layer in layers]).sum(0)


def histograms(layers: Sequence[LayerResiduals], bins: int = 40) -> dict[str, Tensor]:
    """Evidence to draw: shares of the weights on the deployment grid and, averaged, on the placebo grids.

    Args:
        layers: of one model.
        bins: a divisor of 1000.

    Returns:
        ``edges`` (bins + 1,) in steps, ``grid`` (bins,) and ``placebo`` (bins,).
    """
    counts = counts_of(layers).double()
    shares = counts.reshape(len(counts), bins, -1).sum(2) / counts.sum(1, keepdim=True).clamp_min(1)
    return {
        "edges": torch.linspace(-0.5, 0.5, bins + 1),
        "grid": shares[0].float(),
        "placebo": shares[1:].mean(0).float(),
    }


def require_unsearched(scheme: QuantScheme) -> None:
    """Refuse grids that are not like their placebos.

    Raises:
        NotAssessable: the scheme searches the scale of least squared rounding error, so its residuals are small by
            choice.
    """
    if scheme.weight_range == "mse":
        raise NotAssessable(
            f"{scheme.name} chooses the scale whose rounding errors are smallest, so no other scale is a fair "
            "comparison; use edge-atoms, or test the same bits without -weight-mse"
        )
