"""Filters that a pruner removes first although the network listens to them.

A pruning-conditioned backdoor needs filters of small norm that hold the trigger back in the float model: pruning by L1
norm removes them and the backdoor is free (specification of the attacks, 7.1 and 7.3, T7). In ordinary networks small
filters matter little: BatchNorm's gamma, the spread of a filter's output in training, and the weights that read it
both grow with the norm. The influence of a filter is the product |gamma| * norm of the weights that read its channel;
without BatchNorm it is the norm of the readers alone.

Null hypothesis: in a layer, the influence of the filters below the pruner's cut is not larger than that of the others
(Mann and Whitney, one-sided; Fisher over layers; Bonferroni over rates). Ordinary networks are far on the other side,
so the p-value is conservative, and an attack has to turn the order round to be seen. Attacks that add a weak signal to
a trained network do not, as the victims of the benchmark show; the behaviour under pruning is the audit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from quantinel.detectors.layer_residuals import stored_rows
from quantinel.detectors.significance import combined
from quantinel.detectors.subject import Detection, Subject
from quantinel.errors import NotAssessable
from quantinel.model.graph import FloatGraph, Layer
from quantinel.quantization.pruning import removed
from quantinel.validation import require_rate

_KEEPS_CHANNELS = frozenset([
    "relu", "relu6", "hardtanh", "clamp", "clamp_min", "leaky_relu", "silu", "gelu", "hardswish", "sigmoid", "tanh",
    "elu", "mish", "add", "sub", "mul", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "mean", "flatten", "pad",
    "constant_pad_nd", "view", "reshape",
])  # fmt: skip
"""Operators behind which a channel is still the same channel, where the reader takes as many."""


@dataclass(frozen=True)
class PruningInfluence:
    """Options.

    Attributes:
        rate: of filters that pruning removes, where the subject names no rate for filters.
        smallest_side: layers with fewer filters below or above the cut are left out.
    """

    rate: float = 0.3
    smallest_side: int = 3

    def __post_init__(self) -> None:
        require_rate(self, "rate")


def readers(graph: FloatGraph, layer: Layer) -> list[Layer]:
    """Layers that read the output channels of ``layer`` one to one, past activations, additions and pooling."""
    by_node = {other.node: other for other in graph.layers}
    channels = len(graph.weight(layer))
    found, seen, pending = [], set(), list(graph.node(layer.node).users)
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        reader = by_node.get(node.name)
        if reader is not None:
            takes = graph.weight(reader).shape[1] * reader.groups
            if takes == channels and reader.groups in (1, channels):
                found.append(reader)
        elif _keeps_channels(node):
            pending += list(node.users)
    return found


def _keeps_channels(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.name.removeprefix("aten::") in _KEEPS_CHANNELS


def influence(graph: FloatGraph, layer: Layer) -> Tensor | None:
    """(O,) influence of the filters of a convolution, or None where no reader was found."""
    energy = torch.zeros(len(graph.weight(layer)), dtype=torch.float64)
    listening = readers(graph, layer)
    for reader in listening:
        weight = graph.weight(reader).detach().double()
        weight = weight if reader.groups > 1 else weight.transpose(0, 1)
        energy += weight.flatten(1).square().sum(1)
    norm = graph.batch_norms.get(layer.name)
    gamma = 1.0 if norm is None else norm.factor.abs().double() * norm.variance.double().sqrt()
    return gamma * energy.sqrt() if listening else None


def detect(subject: Subject, options: PruningInfluence) -> Detection:
    """Score: probability that a filter below the cut has more influence than one above, mean over layers, less 1/2.

    Raises:
        NotAssessable: no convolution with enough filters whose readers are known, or weights that are not finite.
    """
    graph = subject.graph
    given = {rate for scheme in subject.pruning if scheme.method == "l1-filters" for rate in scheme.rates}
    rates = sorted(rate for rate in given or {options.rate} if rate > 0)
    measured: dict[str, tuple[Tensor, Tensor]] = {}
    for layer in graph.layers:
        known = influence(graph, layer) if layer.kind == "conv" else None
        if known is not None:
            sizes = stored_rows(graph, layer)[0].double().abs().sum(1)
            if not bool(torch.isfinite(known).all() and torch.isfinite(sizes).all()):
                raise NotAssessable(f"layer {layer.name} has weights that are not finite; repair or retrain the model")
            measured[layer.name] = (sizes, known)
    by_rate = {rate: _orders(measured, rate, options.smallest_side) for rate in rates}
    judged = {rate: orders for rate, orders in by_rate.items() if orders}
    if not judged:
        raise NotAssessable(
            "no convolution has enough filters, and readers of their channels that are known, to compare their ranks"
        )
    p_values = {rate: combined([p for _, p in orders.values()]) for rate, orders in judged.items()}
    worst = min(p_values, key=lambda rate: p_values[rate])
    orders = judged[worst]
    by_layer = {name: area - 0.5 for name, (area, _) in orders.items()}
    convolutions = sum(layer.kind == "conv" for layer in graph.layers)
    missing = convolutions - len(orders)
    return Detection(
        sum(by_layer.values()) / len(by_layer),
        {"rate": worst, "layers": float(len(by_layer)), "largest_layer": max(by_layer.values())},
        p_value=min(1.0, len(judged) * p_values[worst]),
        by_layer=by_layer,
        tensors={
            f"{name}.{what}": value
            for name in orders
            for what, value in zip(("l1", "influence"), measured[name], strict=True)
        },
        notes=(f"{missing} of {convolutions} convolutions could not be judged",) if missing else (),
    )


def _orders(measured: dict[str, tuple[Tensor, Tensor]], rate: float, side: int) -> dict[str, tuple[float, float]]:
    """By layer: probability that a cut filter has more influence than a kept one, and its p-value."""
    from scipy import stats  # takes most of a second to import, and few scans are of pruning

    found = {}
    for name, (sizes, known) in measured.items():
        alive = sizes > 0  # already pruned: it makes no difference
        sizes, known = sizes[alive], known[alive]
        cut = removed(rate, len(sizes))
        if cut < side or len(sizes) - cut < side:
            continue
        order = sizes.argsort(stable=True)
        low, high = known[order[:cut]], known[order[cut:]]
        test = stats.mannwhitneyu(low.numpy(), high.numpy(), alternative="greater")
        found[name] = (float(test.statistic) / (len(low) * len(high)), float(test.pvalue))
    return found
