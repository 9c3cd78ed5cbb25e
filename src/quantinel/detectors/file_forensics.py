"""The data-free tests on a ``.safetensors`` file, tensor by tensor, without a model and without loading the file.

The file is read once, in pieces, for the largest weight of every scale and for block outliers; residuals are then
measured on an even sample of rows, drawn anew for every seed. Memory does not depend on the size of the file.

What a file cannot say: which tensors a deployment quantizes (all float tensors of two dimensions and more are looked
at, first dimension as output channels), and how BatchNorm is folded. A grid per channel does not care; a grid per
tensor does, so attacks made for folded weights and one scale per tensor need the model, not the file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quantinel.detectors import edge_atoms, on_grid, residual_coherence, residual_fit, second_moment
from quantinel.detectors.block_outliers import BlockCounts, BlockOutliers, count_blocks, judge_blocks
from quantinel.detectors.layer_residuals import LayerResiduals, Piece, measure, require_unsearched
from quantinel.detectors.subject import Detection
from quantinel.detectors.weight_precision import FLOAT32, lattice_levels, significand_bits
from quantinel.errors import NotAssessable
from quantinel.model.safetensors_file import FLOATS, SafetensorsFile, StoredTensor
from quantinel.quantization.ranges import weight_scales
from quantinel.quantization.scheme import QuantScheme
from quantinel.validation import require_positive_integers

_PIECE = 1 << 19
"""Weights that are held at once: few enough for the processor's cache."""
_RUN = 1 << 14
"""Weights that are read in a row for the sample."""
_SHORTEST_ROW = 8
_MOST_TENSORS = 1024
_LATTICE_ROWS = 8
_BITS = {"F64": FLOAT32, "F32": FLOAT32, "F16": 11, "BF16": 8}


@dataclass(frozen=True)
class FileOptions:
    """Options.

    Attributes:
        sample: weights of the whole file whose residuals are measured; every tensor gets its share.
        smallest_sample: of one tensor.
    """

    sample: int = 1 << 20
    smallest_sample: int = 1 << 14

    def __post_init__(self) -> None:
        require_positive_integers(self, "sample", "smallest_sample")


@dataclass(frozen=True)
class FileForensics:
    """What the weights of a file show.

    Attributes:
        detections: by detector name.
        not_assessable: detectors that cannot judge this file, with the reason.
        tensors: names of the tensors that were looked at.
        skipped: other tensors, with the reason.
        weights: numbers in the tensors that were looked at.
        sampled: of these, numbers whose residuals were measured.
    """

    detections: dict[str, Detection]
    not_assessable: dict[str, str]
    tensors: tuple[str, ...]
    skipped: dict[str, str]
    weights: int
    sampled: int


@dataclass
class _Range:
    """What the first reading of a tensor gives."""

    largest: Tensor  # (O, 1)
    blocks: BlockCounts
    finite: bool = field(default=True)


def examine_file(
    path: str | Path, scheme: QuantScheme, options: FileOptions | None = None, seed: int = 0
) -> FileForensics:
    """Run the data-free tests on a file.

    Args:
        path: of a ``.safetensors`` file.
        scheme: the deployment grid.
        options: how much is sampled.
        seed: of the sample and the dither.

    Raises:
        InputError: not a safetensors file.
        NotAssessable: nothing in it can be judged, or the scheme searches ranges over whole tensors.
    """
    options = options or FileOptions()
    if scheme.granularity == "tensor" and scheme.weight_range != "minmax":
        raise NotAssessable(f"{scheme.name} needs whole tensors for its ranges; load the model instead of its file")
    generator = torch.Generator().manual_seed(seed)
    with SafetensorsFile(path) as file:
        kept, skipped = _select(file.tensors, scheme)
        total = sum(tensor.count for tensor in kept)
        layers: list[LayerResiduals] = []
        blocks: list[BlockCounts] = []
        for tensor in kept:
            found = _first_reading(file, tensor)
            if not found.finite:
                skipped[tensor.name] = "holds numbers that are not finite"
                continue
            blocks.append(found.blocks)
            share = max(options.smallest_sample, options.sample * tensor.count // total)
            layers.append(_residuals(file, tensor, found.largest, scheme, share, generator))
    if not layers:
        raise NotAssessable(
            f"{path} holds no float tensor of two dimensions that can be judged; give the float checkpoint"
        )
    detections, refused = _judge(layers, blocks, scheme)
    used = tuple(layer.name for layer in layers)
    weights = sum(tensor.count for tensor in kept if tensor.name not in skipped)
    return FileForensics(
        detections, refused, used, skipped, weights, sum(layer.weights + layer.left_out for layer in layers)
    )


def _select(tensors: Sequence[StoredTensor], scheme: QuantScheme) -> tuple[list[StoredTensor], dict[str, str]]:
    """Tensors to look at, and why not the others."""
    kept, skipped = [], {}
    for tensor in tensors:
        if len(tensor.shape) < 2:
            skipped[tensor.name] = "has fewer than two dimensions"
        elif tensor.dtype not in FLOATS:
            skipped[tensor.name] = f"is {tensor.dtype}, not float"
        elif tensor.count < _SHORTEST_ROW or tensor.count // tensor.shape[0] < _SHORTEST_ROW:
            skipped[tensor.name] = f"has fewer than {_SHORTEST_ROW} weights for each output channel"
        elif scheme.weight_range != "minmax" and tensor.count // tensor.shape[0] > _RUN:
            skipped[tensor.name] = f"has rows of more than {_RUN} weights, too long for the range rule of {scheme.name}"
        else:
            kept.append(tensor)
    kept.sort(key=lambda tensor: -tensor.count)
    for tensor in kept[_MOST_TENSORS:]:
        skipped[tensor.name] = f"is smaller than the {_MOST_TENSORS} largest"
    return sorted(kept[:_MOST_TENSORS], key=lambda tensor: tensor.offset), skipped


def _pieces(length: int, rows: int) -> Iterator[tuple[int, int, int, int]]:
    """(first row, last row, first column, last column) of parts of about `_PIECE` weights: whole rows if they fit."""
    if length <= _PIECE:
        step = _PIECE // length
        for start in range(0, rows, step):
            yield start, min(start + step, rows), 0, length
        return
    for row in range(rows):
        for start in range(0, length, _PIECE):
            yield row, row + 1, start, min(start + _PIECE, length)


def _first_reading(file: SafetensorsFile, tensor: StoredTensor) -> _Range:
    rows, length = tensor.shape[0], tensor.count // tensor.shape[0]
    options = BlockOutliers()
    found = _Range(torch.zeros(rows, 1), BlockCounts(tensor.name, 0, 0, 0.0))
    for top, bottom, left, right in _pieces(length, rows):
        part = file.read(tensor, top * length + left, (bottom - 1) * length + right).abs_().reshape(bottom - top, -1)
        largest = part.amax(1, keepdim=True)
        if not bool(torch.isfinite(largest).all()):
            found.finite = False
            return found
        found.largest[top:bottom] = torch.maximum(found.largest[top:bottom], largest)
        found.blocks = found.blocks.plus(count_blocks(tensor.name, part, options))
    return found


def _residuals(
    file: SafetensorsFile,
    tensor: StoredTensor,
    largest: Tensor,
    scheme: QuantScheme,
    share: int,
    generator: torch.Generator,
) -> LayerResiduals:
    """Measure the residuals of an even sample of a tensor."""
    parts = _sample(file, tensor, share, generator)
    first = next(parts)
    bits = min(_BITS[tensor.dtype], significand_bits(first[0]))
    levels = lattice_levels(first[0][:: max(1, len(first[0]) // _LATTICE_ROWS)], bits)

    def pieces() -> Iterator[Piece]:
        for weights, rows in (first, *parts):
            bound = largest[rows]
            if scheme.granularity == "tensor":
                bound = largest.amax().expand_as(bound)
            source = bound if scheme.weight_range == "minmax" else weights
            per_row = weight_scales(source, scheme) if scheme.granularity == "channel" else None
            scale = weight_scales(bound[:1], scheme) if per_row is None else per_row
            yield Piece(weights, scale.reshape(-1, 1).expand_as(bound), bound)

    return measure(tensor.name, pieces(), scheme, generator, bits, levels)


def _sample(
    file: SafetensorsFile, tensor: StoredTensor, share: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Runs of whole rows (of parts of rows, where rows are long), evenly spread; (R, D) weights and (R,) rows.

    Runs that follow each other are given together, so that no piece is too small to be worth its calls.
    """
    rows, length = tensor.shape[0], tensor.count // tensor.shape[0]
    width = min(length, _RUN)
    height = max(1, _RUN // length)
    places = math.ceil(rows / height) * math.ceil(length / width)
    taken = min(places, max(1, share // (height * width)))
    offset = float(torch.rand(1, generator=generator)) if taken < places else 0.0
    across = math.ceil(length / width)
    weights: list[Tensor] = []
    indices: list[Tensor] = []
    for turn in range(taken):
        down, over = divmod(int((turn + offset) * places / taken), across)
        top, bottom = down * height, min((down + 1) * height, rows)
        left, right = over * width, min((over + 1) * width, length)
        run = file.read(tensor, top * length + left, (bottom - 1) * length + right).reshape(bottom - top, -1)
        if weights and (weights[0].shape[1] != run.shape[1] or sum(map(torch.numel, weights)) >= _PIECE):
            yield torch.cat(weights), torch.cat(indices)
            weights, indices = [], []
        weights.append(run)
        indices.append(torch.arange(top, bottom))
    yield torch.cat(weights), torch.cat(indices)


def _judge(
    layers: Sequence[LayerResiduals], blocks: Sequence[BlockCounts], scheme: QuantScheme
) -> tuple[dict[str, Detection], dict[str, str]]:
    def unsearched(judge: Callable[[Any, Any], Detection], options: object) -> Detection:
        require_unsearched(scheme)
        return judge(layers, options)

    tests: dict[str, Callable[[], Detection]] = {
        "edge-atoms": lambda: edge_atoms.find_atoms(layers, edge_atoms.EdgeAtoms()),
        "residual-fit": lambda: unsearched(residual_fit.judge_fit, residual_fit.ResidualFit()),
        "second-moment": lambda: unsearched(second_moment.judge_moment, second_moment.SecondMoment()),
        "residual-coherence": lambda: residual_coherence.judge_coherence(
            layers, residual_coherence.ResidualCoherence()
        ),
        "on-grid": lambda: on_grid.count_on_grid(layers, on_grid.OnGrid()),
        "block-outliers": lambda: judge_blocks(blocks, BlockOutliers()),
    }
    detections, refused = {}, {}
    for name, test in tests.items():
        try:
            detections[name] = test()
        except NotAssessable as error:
            refused[name] = str(error)
    return detections, refused
