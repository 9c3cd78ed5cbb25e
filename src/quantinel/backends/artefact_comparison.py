"""A shipped quantized file against the float model that it is said to come from. The quantizer may be the attacker.

QuRA (NDSS 2026; specification of the attacks, 6.1) plants a backdoor by choosing the integers alone, with a clean float
model. So every integer is held against nearest rounding of its float weight on the file's own grid. Rounding that was
chosen on purpose is no proof: AdaRound, EFRAP and this project's defenses move many weights to the other neighbour, and
GPTQ and this project's default at 8 bits further. Three cases are told apart: nearest rounding, which no one could use
to hide anything; other neighbours, which need an explanation; and integers that are not from these weights at all.

What cannot be matched or read is listed as not assessed and never counted as fine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx

from quantinel.backends.artefact import read_integers
from quantinel.backends.artefact_answers import compare_answers
from quantinel.backends.artefact_grids import other_grid
from quantinel.backends.artefact_layers import LayerDifference, layer_difference
from quantinel.backends.artefact_notes import FileNotes
from quantinel.backends.artefact_structure import structure_notes
from quantinel.backends.layer_matching import Matching, correlation, match_layers
from quantinel.backends.shipped_layers import ShippedLayer, shipped_layers
from quantinel.backends.verification import load_onnx
from quantinel.data.images import ImageSet
from quantinel.errors import NotAssessable, VerificationError
from quantinel.model.graph import FloatGraph
from quantinel.quantization.quantized_model import QuantizedLayer
from quantinel.quantization.scheme import QuantScheme

Level = Literal["info", "warning", "error"]

_NEAREST = 1e-3
"""Share of other roundings up to which a layer counts as rounded to nearest."""
_SAME_WEIGHTS = 0.9
"""Share of nearest rounding's correlation below which the integers are not from these weights."""
_NARROWEST, _WIDEST = 0.3, 1.5
"""Range of the grid over the range of the weights that range rules give; least squares at 4 bits goes down to 0.4."""
_MOST_LAYERS = 4096
_NO_OPERATORS = "it holds integers and no operators: give the ONNX file that runs"


@dataclass(frozen=True)
class ArtefactFinding:
    """Something that the comparison noticed.

    Attributes:
        id: stable name.
        level: "error" for what no quantizer does, "warning" for what needs an explanation, "info" otherwise.
        layer: that it is about, or None.
        detail: figures in a sentence.
    """

    id: str
    level: Level
    layer: str | None
    detail: str


@dataclass(frozen=True)
class ArtefactComparison:
    """The whole file.

    Attributes:
        layers: compared, in the order of the float model.
        findings: errors first.
        not_assessed: sentences on what could not be compared; never empty when a layer is missing.
        other: share of all compared weights that are not rounded to nearest.
    """

    layers: tuple[LayerDifference, ...]
    findings: tuple[ArtefactFinding, ...]
    not_assessed: tuple[str, ...]
    other: float


def shipped_file(path: Path) -> Path:
    """The file that is meant: of a hardened folder, its model."""
    return path / "model.onnx" if path.is_dir() else path


def compare_artefact(
    graph: FloatGraph, path: Path, images: ImageSet | None = None, schemes: Sequence[QuantScheme] = ()
) -> ArtefactComparison:
    """Compare a shipped file with a float model.

    Args:
        graph: folded float network.
        path: an ONNX file, a hardened folder (its ``model.onnx``), or ``quantized.safetensors`` of one.
        images: of the model's kind, to run the file on.
        schemes: grids that the float model was looked at on; a file on another one stays undecided. None are no grids.

    Raises:
        VerificationError: missing, truncated or not valid.
        NotAssessable: not one layer can be compared.
    """
    if path.suffix == ".safetensors":
        return compare_stored(graph, read_integers(path).layers, schemes)
    return compare_model(graph, load_onnx(shipped_file(path)), images, schemes)


def compare_stored(
    graph: FloatGraph, stored: Mapping[str, QuantizedLayer], schemes: Sequence[QuantScheme] = ()
) -> ArtefactComparison:
    """Compare integers of this project's own format.

    Raises:
        NotAssessable: not one layer can be compared.
    """
    shipped = [
        ShippedLayer(
            name, layer.layer.kind, "", layer.codes.numpy().astype(np.int32), layer.weight().double().numpy(),
            layer.scale.double().numpy().reshape(-1), np.zeros(1, np.int32), 255.0,
            None if (bias := layer.bias()) is None else bias.double().numpy(),
            None if layer.bias_codes is None or layer.bias_scale is None else layer.bias_scale.double().numpy(),
        )
        for name, layer in stored.items()
    ]  # fmt: skip
    return _compare(graph, match_layers(graph, shipped), FileNotes(not_assessed=[_NO_OPERATORS]), schemes)


def compare_model(
    graph: FloatGraph, model: onnx.ModelProto, images: ImageSet | None = None, schemes: Sequence[QuantScheme] = ()
) -> ArtefactComparison:
    """Compare an ONNX model: integers, operators, and answers.

    Args:
        graph: folded float network.
        model: checked, see `quantinel.backends.verification.load_onnx`.
        images: of the model's kind, to run the file on; without them its behaviour stays undecided.
        schemes: see `compare_artefact`.

    Raises:
        VerificationError: more layers than any network of the float model's size has.
        NotAssessable: not one layer can be compared.
    """
    shipped = shipped_layers(model)
    if len(shipped) > _MOST_LAYERS:
        raise VerificationError(f"the file has {len(shipped)} layers; at most {_MOST_LAYERS} are compared")
    matching = match_layers(graph, shipped)
    structure, answers = structure_notes(graph, model), compare_answers(graph, model, matching.pairs, images)
    told = FileNotes(structure.notes + answers.notes, structure.not_assessed + answers.not_assessed)
    return _compare(graph, matching, told, schemes)


def _compare(
    graph: FloatGraph, matching: Matching, told: FileNotes, schemes: Sequence[QuantScheme]
) -> ArtefactComparison:
    findings = [ArtefactFinding(note.id, note.level, None, note.detail) for note in told.notes]
    not_assessed = []
    layers: list[LayerDifference] = []
    for layer, item in matching.pairs:
        if item.codes is None:
            not_assessed.append(f"{layer.name} stays float in the file ({item.name})")
            assert item.weight is not None
            same = correlation(graph.weight(layer).detach().double().numpy().ravel(), item.weight.ravel())
            if same < _SAME_WEIGHTS:
                findings.append(_replaced(layer.name, same))
            continue
        found = layer_difference(graph, layer, item)
        layers.append(found)
        if item.bias is None and graph.bias(layer) is not None:
            not_assessed.append(f"the bias of {layer.name} was not found in the file")
        findings += _layer_findings(found)
    not_assessed += [f"{layer.name} has no counterpart in the file" for layer in matching.missing]
    if matching.reordered:
        findings.append(
            ArtefactFinding(
                "layers-reordered", "warning", matching.reordered[0],
                f"the file runs {', '.join(matching.reordered[:5])} earlier than the float model does; exporters "
                "may do so with parallel branches, layers in a chain must not change places",
            )
        )  # fmt: skip
    for item in matching.additional:
        if item.problem:
            not_assessed.append(f"{item.name} ({item.operator}): {item.problem}")
            continue
        shape = "x".join(map(str, item.shape))
        findings.append(
            ArtefactFinding(
                "layer-added", "error", item.name,
                f"{item.operator} with the {shape} weight {item.name} is in the file and not in the float model; a "
                "hidden branch looks like this",
            )
        )  # fmt: skip
    if not layers:
        reason = not_assessed[0] if not_assessed else "it holds no layers"
        raise NotAssessable(
            f"not one layer of the file can be compared with the float model ({reason}); give the float model that "
            "the file was made from"
        )
    elsewhere = other_grid(graph, matching.pairs, schemes)
    not_assessed += [] if elsewhere is None else [elsewhere]
    weights = sum(layer.weights for layer in layers)
    other = sum(layer.other * layer.weights for layer in layers) / weights
    findings.append(_rounding(other, layers))
    findings += _beyond(layers)
    order = {"error": 0, "warning": 1, "info": 2}
    findings.sort(key=lambda finding: order[finding.level])
    return ArtefactComparison(tuple(layers), tuple(findings), (*not_assessed, *told.not_assessed), other)


def _replaced(name: str, found: float) -> ArtefactFinding:
    return ArtefactFinding(
        "weights-replaced", "error", name,
        f"the weights of {name} have a correlation of {found:.3f} with the float model's; they come from another model",
    )  # fmt: skip


def _other_weights(layer: LayerDifference) -> bool:
    return layer.correlation < _SAME_WEIGHTS * layer.nearest_correlation


def _beyond(layers: Sequence[LayerDifference]) -> list[ArtefactFinding]:
    """One finding for all layers whose integers are further from their weights than rounding takes them."""
    beyond = [layer for layer in layers if layer.beyond > 0 and not _other_weights(layer)]
    if not beyond:
        return []
    most = max(beyond, key=lambda layer: layer.beyond)
    share = sum(layer.beyond * layer.weights for layer in beyond) / sum(layer.weights for layer in beyond)
    return [
        ArtefactFinding(
            "beyond-rounding", "warning", most.name,
            f"{100 * share:.3g} % of the integers of {len(beyond)} of {len(layers)} layers, most in {most.name} "
            f"({100 * most.beyond:.3g} %), are neither the code below their weight nor the one above (up to "
            f"{max(layer.largest for layer in beyond):.3g} steps away); error compensation (GPTQ) and "
            "reconstruction with room (invariant, at 8 bits) do this, and so does changing weights by hand",
        )
    ]  # fmt: skip


def _layer_findings(layer: LayerDifference) -> list[ArtefactFinding]:
    found = []
    if _other_weights(layer):
        found.append(_replaced(layer.name, layer.correlation))
    low, high = layer.coverage
    if low < _NARROWEST or high > _WIDEST:
        found.append(
            ArtefactFinding(
                "scale-out-of-range", "warning", layer.name,
                f"the grid of {layer.name} covers {low:.3g} to {high:.3g} times the range of its weights; range rules "
                "give about 1, percentiles somewhat less",
            )
        )  # fmt: skip
    if layer.bias is not None and layer.bias > 0.05:
        found.append(
            ArtefactFinding(
                "bias-changed", "warning", layer.name,
                f"a bias of {layer.name} differs by {100 * layer.bias:.3g} % of the largest; bias correction changes "
                "biases, rounding does not",
            )
        )  # fmt: skip
    return found


def _rounding(other: float, layers: Sequence[LayerDifference]) -> ArtefactFinding:
    chosen = [layer for layer in layers if layer.other > _NEAREST]
    if not chosen:
        return ArtefactFinding(
            "nearest-rounding", "info", None,
            f"all {len(layers)} compared layers hold nearest rounding of the float weights",
        )  # fmt: skip
    worst = max(chosen, key=lambda layer: layer.other)
    return ArtefactFinding(
        "rounding-chosen", "warning", None,
        f"{100 * other:.3g} % of the integers are not the nearest ones, in {len(chosen)} of {len(layers)} layers (most "
        f"in {worst.name}: {100 * worst.other:.3g} %); AdaRound, EFRAP and other optimising quantizers leave this, and "
        "a quantizer that plants a backdoor does: ask how they were chosen, or quantize the float model yourself",
    )  # fmt: skip
