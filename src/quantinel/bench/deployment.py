"""What a cell's scheme does to a float model: pruning or quantization-aware training, a quantization grid, or both.

Most deployers fold BatchNorm into the layer before it and quantize the product. Others quantize the weight as it was
trained, and BatchNorm stays a float operation behind the layer (``unfolded-bn+int8``), as in the released code of
Qu-ANTI-zation (Hong et al., NeurIPS 2021) and EFRAP (Li et al., CVPR 2024). On a symmetric grid with one scale per
channel both give the same integers up to the sign of gamma; with one scale per tensor they do not. Deviation from
that code: a convolution's output is rounded before BatchNorm reads it, or no runtime would multiply in integers.
"""

from __future__ import annotations

from dataclasses import dataclass

from quantinel.errors import UsageError
from quantinel.quantization.pruning import PREFIX, PruningScheme, parse_pruning
from quantinel.quantization.scheme import QuantScheme, parse_scheme
from quantinel.training import qat
from quantinel.training.qat import QATRecipe, parse_qat

UNFOLDED = "unfolded-bn"
"""Prefix of a grid: weights are quantized without folding BatchNorm into them."""

_QUANTIZERS = {"static": "static-ptq", "dynamic": "dynamic-ptq", "none": "weight-only-ptq"}
_PRUNERS = {"l1-filters": "l1-filter-pruning", "magnitude": "magnitude-pruning"}


@dataclass(frozen=True)
class Deployment:
    """A parsed scheme of a suite.

    Attributes:
        pruning: applied first, without training afterwards; None for none.
        grid: of the quantization; None leaves the model in float.
        training: quantization-aware training for the grid before the rounding; None for none.
        fold_batch_norm: before weights are quantized; false keeps BatchNorm in float. LayerNorm is folded either way.

    Raises:
        UsageError: training without a grid, or of a pruned network, whose zeros it would undo; BatchNorm unfolded
            without a grid, behind pruning, or behind a training, which is for folded weights.
    """

    pruning: PruningScheme | None
    grid: QuantScheme | None
    training: QATRecipe | None = None
    fold_batch_norm: bool = True

    def __post_init__(self) -> None:
        if self.training is not None and (self.grid is None or self.pruning is not None):
            raise UsageError(f"{self.name}: qat trains for a grid, not a pruned network; write for example qat+int8")
        if not self.fold_batch_norm and (self.grid is None or self.pruning is not None or self.training is not None):
            raise UsageError(f"{self.name}: {UNFOLDED} goes before a grid and nothing else, as in {UNFOLDED}+int8")

    @property
    def name(self) -> str:
        """``int8``, ``prune-l1-filters-0.3``, ``prune-l1-filters-0.3+int8``, ``qat+int8`` or ``unfolded-bn+int8``.

        `parse_deployment` reads it back.
        """
        before = [part.name for part in (self.pruning, self.training) if part is not None]
        before += [] if self.fold_batch_norm else [UNFOLDED]
        return "+".join([*before, *([] if self.grid is None else [self.grid.name])])

    @property
    def compressor(self) -> str:
        """What compresses, as rows call it."""
        names = [] if self.pruning is None else [_PRUNERS[self.pruning.method]]
        names += [] if self.training is None else [qat.PREFIX]
        names += [] if self.fold_batch_norm else [UNFOLDED]
        return "+".join([*names, *([] if self.grid is None else [_QUANTIZERS[self.grid.activations]])])

    def check(self, defense: str | None, detector: str | None, kind: str | None = "rounding") -> None:
        """A defense or a detector makes sense on it.

        Args:
            defense: its label, or "none"; None if there is a detector.
            detector: or None.
            kind: of the defense: "rounding", "repair" or "pruning".

        Raises:
            UsageError: it does not.
        """
        if detector is not None and self.pruning is not None:
            raise UsageError(f"detector {detector} looks at quantization grids, and {self.name} prunes; leave it out")
        if detector is not None and self.training is not None:
            raise UsageError(
                f"detector {detector} looks at the model as it came, and {self.name} trains it; leave it out"
            )
        if detector is not None and not self.fold_batch_norm:
            raise UsageError(f"detector {detector} folds BatchNorm, and {self.name} does not; leave it out")
        if detector is not None:
            return
        if kind == "pruning" and self.pruning is None:
            raise UsageError(f"{defense} chooses what pruning removes, and {self.name} does not prune; leave it out")
        if self.grid is None and defense != "none" and kind == "rounding":
            raise UsageError(
                f"{self.name} leaves a float network, which a rounding method such as {defense} does not apply to; say "
                f'defenses = "none", or quantize behind it ({self.name}+int8)'
            )
        if self.grid is not None and defense == "none":
            raise UsageError(f'{self.name} is quantized, so its weights are rounded; say defenses = "nearest"')


def parse_deployment(name: str) -> Deployment:
    """Read a scheme of a suite.

    Raises:
        UsageError: it is not understood.
    """
    first, plus, second = name.strip().partition("+")
    if first.lower().startswith(qat.PREFIX):
        return Deployment(None, parse_scheme(second) if plus else None, parse_qat(first))
    if first.lower() == UNFOLDED:
        return Deployment(None, parse_scheme(second) if second else None, fold_batch_norm=False)
    if not first.lower().startswith(PREFIX):
        return Deployment(None, parse_scheme(name))
    return Deployment(parse_pruning(first), parse_scheme(second) if plus else None)
