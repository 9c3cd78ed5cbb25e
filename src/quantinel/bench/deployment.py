"""What a cell's scheme does to a float model: pruning, a quantization grid, or first the one and then the other."""

from __future__ import annotations

from dataclasses import dataclass

from quantinel.errors import UsageError
from quantinel.quantization.pruning import PREFIX, PruningScheme, parse_pruning
from quantinel.quantization.scheme import QuantScheme, parse_scheme

_QUANTIZERS = {"static": "static-ptq", "dynamic": "dynamic-ptq", "none": "weight-only-ptq"}
_PRUNERS = {"l1-filters": "l1-filter-pruning", "magnitude": "magnitude-pruning"}


@dataclass(frozen=True)
class Deployment:
    """A parsed scheme of a suite.

    Attributes:
        pruning: applied first, without training afterwards; None for none.
        grid: of the quantization; None leaves the model in float.
    """

    pruning: PruningScheme | None
    grid: QuantScheme | None

    @property
    def name(self) -> str:
        """``int8``, ``prune-l1-filters-0.3`` or ``prune-l1-filters-0.3+int8``; `parse_deployment` reads it back."""
        return "+".join(part.name for part in (self.pruning, self.grid) if part is not None)

    @property
    def compressor(self) -> str:
        """What compresses, as rows call it."""
        names = [] if self.pruning is None else [_PRUNERS[self.pruning.method]]
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
    if not first.lower().startswith(PREFIX):
        return Deployment(None, parse_scheme(name))
    return Deployment(parse_pruning(first), parse_scheme(second) if plus else None)
