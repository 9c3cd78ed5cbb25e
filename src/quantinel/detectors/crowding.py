"""Weights crowded at rounding boundaries: the mark that projected attacks leave.

A projected attack (PQ backdoor and its relatives) repairs the float model while holding every weight inside its
rounding cell; weights that want to leave pile up at the edge of the cell. On natural networks 1 % of the weights have
residuals 0.495 < |r| <= 0.5 (`quantinel.detectors.weight_residuals`); on attacked models 46 to 78 % were measured
(specification of the attacks, 7), and only on the grid that the attacker aimed at. Adaptive attackers can avoid it: a
tripwire, not the audit.
"""

from __future__ import annotations

from dataclasses import dataclass

from quantinel.detectors.subject import Detection, Subject


@dataclass(frozen=True)
class WeightResiduals:
    """The detector's options: there are none."""


def detect(subject: Subject, options: WeightResiduals) -> Detection:
    """Score: share of weights at rounding boundaries, less the share on the placebo grids."""
    del options
    found = subject.crowding
    statistics = {
        "edge_share": found.edge_share,
        "placebo_edge_share": found.placebo_edge_share,
        "largest_layer_share": max(found.by_layer.values(), default=0.0),
        "weights": float(found.weights),
    }
    return Detection(found.edge_share - found.placebo_edge_share, statistics)
