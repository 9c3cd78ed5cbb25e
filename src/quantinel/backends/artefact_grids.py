"""Whether a shipped file lies on a grid that was scanned.

A backdoor is made for one grid, and sleeps on others: nearest rounding is innocent where it was looked at, and a file
on another grid holds other integers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from quantinel.backends.artefact_layers import is_asymmetric
from quantinel.backends.shipped_layers import ShippedLayer
from quantinel.model.graph import FloatGraph, Layer
from quantinel.quantization.ranges import weight_scales
from quantinel.quantization.scheme import QuantScheme

_SAME_SCALE = 1e-3
"""Largest relative difference of equal scales: grids that differ by 0.4 % (127 or 127.5 levels) are two."""


def other_grid(
    graph: FloatGraph, pairs: Sequence[tuple[Layer, ShippedLayer]], schemes: Sequence[QuantScheme]
) -> str | None:
    """What to say of a file that lies on none of the grids; None where it lies on one.

    Args:
        graph: folded float network.
        pairs: which layer of the file belongs to which layer of the float model.
        schemes: grids that were scanned.
    """
    read = [(layer, item) for layer, item in pairs if item.codes is not None]
    off = [[layer.name for layer, item in read if not _lies_on(graph, layer, item, scheme)] for scheme in schemes]
    nearest = min(off, key=len, default=[])
    if not nearest:
        return None
    return (
        f"{len(nearest)} of {len(read)} layers, first {nearest[0]}, lie on another grid than those that were scanned "
        f"({', '.join(scheme.name for scheme in schemes)}), and a backdoor that was made for it would not have shown; "
        "name the file's own grid with --scheme"
    )


def _lies_on(graph: FloatGraph, layer: Layer, item: ShippedLayer, scheme: QuantScheme) -> bool:
    assert item.scale is not None
    weight = graph.weight(layer)
    wanted = np.broadcast_to(weight_scales(weight, scheme).double().numpy(), (len(weight),))
    given = np.broadcast_to(item.scale, (len(weight),))
    used = weight.detach().reshape(len(weight), -1).abs().amax(1).numpy() > 0
    return not is_asymmetric(item) and bool((np.abs(given / wanted - 1)[used] <= _SAME_SCALE).all())
