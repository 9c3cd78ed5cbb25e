"""What a shipped file answers, against the float model with the file's own weights and biases in it.

Two comparisons. The file without its rounding of activations must give the same answers as the model, up to float
arithmetic: every operator, attribute and constant between the weights has a part in them, whoever wrote the file. And
the file as it is, run by ONNX Runtime, must lie as near as rounding activations explains. The first is made without
images too, on noise; the second needs images of the model's kind.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import onnx
import torch
from torch import Tensor, fx

from quantinel.backends.artefact_notes import FileNotes, StructureNote
from quantinel.backends.onnx_execution import BATCH, Classifier
from quantinel.backends.onnx_unrounded import ActivationGrid, Unrounded, unrounded
from quantinel.backends.shipped_layers import ShippedLayer
from quantinel.backends.verification import MAX_STEPS, WIDEST_STEPS, simulated_logits
from quantinel.data.images import ImageSet, as_float
from quantinel.errors import NotAssessable, QuantinelError
from quantinel.model.graph import FloatGraph, Layer, aten
from quantinel.quantization.calibration import calibrate
from quantinel.quantization.placement import is_rectifier
from quantinel.quantization.quantized_model import QuantizedModel
from quantinel.quantization.scheme import QuantScheme

NOT_RUN = "the file was not run: give images of the model's kind with --data"

_FLOAT_STEPS = 0.5
"""Output steps (one 255th of the range of the logits) that float arithmetic may differ by where nothing is rounded."""
_CUTTING = ("Relu", "Clip", "Max")
_FEW = 0.05
"""Share of images beyond the tolerance up to which the file stays undecided: its grids were measured on others."""
_BOUNDED = ("Softmax", "Sigmoid", "HardSigmoid", "Tanh")
"""Operators whose grids cover all values that they could give, whatever the images."""
_WIDEST_GRID, _NARROWEST_GRID = 4.0, 0.1
"""Range of an activation's grid over the range of the activation; range rules give about 1, ties more."""
_GRID_IMAGES = 32
_MOST_NOISE = 0.5
"""The same for images of noise, on which grids that stand for ReLUs cut off more than on the model's own."""
_NOISE = 16
_FAR = (16.0, 256.0)
"""Noise is also compared this many times as bright: what sleeps beyond the values of common images shows there."""


def compare_answers(
    graph: FloatGraph,
    model: onnx.ModelProto,
    pairs: Sequence[tuple[Layer, ShippedLayer]],
    images: ImageSet | None,
) -> FileNotes:
    """Compare the answers of a shipped file with the float model's.

    Args:
        graph: folded float network.
        model: the shipped file, checked.
        pairs: which layer of the file belongs to which layer of the float model.
        images: of the model's kind; None compares on noise alone.
    """
    found = FileNotes()
    if images is None:
        found.not_assessed.append(NOT_RUN)
    unread = [layer.name for layer in graph.layers if layer.name not in {mine.name for mine, _ in pairs}]
    if unread:
        found.not_assessed.append(f"answers were not compared, because {unread[0]} was not found in the file")
        return found
    held = _with_weights(graph, pairs)
    try:
        plain = unrounded(model)
        ways = [plain, unrounded(model, _upper_bound(graph))] if _rectifies_by_grids(graph, plain) else [plain]
        equal = _compare_function(held, ways, images, found)
    except NotAssessable as error:
        found.not_assessed.append(f"the function of the file was not compared with the float model's: {error}")
        return found
    if images is not None and equal is not None:
        try:
            _compare_rounded(graph, held, model, equal, images, found)
        except QuantinelError as error:
            found.not_assessed.append(f"the file could not be run: {error}")
    return found


def _with_weights(graph: FloatGraph, pairs: Sequence[tuple[Layer, ShippedLayer]]) -> FloatGraph:
    """The float model with the weights and biases of the file."""
    module = copy.deepcopy(graph.module)
    for layer, item in pairs:
        weight = module.get_buffer(layer.weight)
        weight.copy_(torch.tensor(item.weight).reshape(weight.shape))
        if layer.bias is not None and item.bias is not None:
            bias = module.get_buffer(layer.bias)
            bias.copy_(torch.tensor(item.bias).reshape(bias.shape))
    return replace(graph, module=module)


def _rectifies_by_grids(graph: FloatGraph, plain: Unrounded) -> bool:
    """Whether the file has fewer ReLU-like operators than the model: quantizers leave them to grids from zero."""
    wanted = sum(is_rectifier(node) for node in graph.module.graph.nodes)
    return plain.activations == "static" and wanted > sum(node.op_type in _CUTTING for node in plain.model.graph.node)


def _upper_bound(graph: FloatGraph) -> float:
    """The smallest number at which the float model cuts activations off; infinity where it does so nowhere."""
    clips = {aten.hardtanh.default: 2, aten.clamp.default: 2}
    found = [math.inf]
    for node in graph.module.graph.nodes:
        if node.target is aten.relu6.default:
            found.append(6.0)
        elif node.target in clips and len(node.args) > clips[node.target]:
            bound = node.args[clips[node.target]]
            found.append(float(bound) if isinstance(bound, int | float) else math.inf)
    return min(found)


def _noise(shape: tuple[int, int, int]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (_NOISE, *shape), generator=generator, dtype=torch.uint8)
    pixels[-2:] = torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1)
    return as_float(pixels)


def _compare_function(
    held: FloatGraph, ways: Sequence[Unrounded], images: ImageSet | None, found: FileNotes
) -> Unrounded | None:
    """The file without rounding against the model, on images and on noise; which of the ways is the same function."""
    noise = _noise(held.input_shape)
    inputs = noise if images is None else torch.cat([noise, images.as_float()])
    expected = _in_batches(held.module, inputs)
    step = _step(expected)
    best: Tensor | None = None
    for way in ways:
        classifier = Classifier(way.model, held.input_shape, optimise=False)
        for words, given in _preparations(held, inputs):
            differing = _differing(classifier.logits(given), expected, step)
            differing[:1] |= _differing(classifier.logits(given[:1]), expected[:1], step)  # alone, as most are deployed
            if best is None or differing.sum() < best.sum():
                best = differing
            if best.any():
                continue
            cut = way is not ways[0]  # by the grids themselves, at the values of common images
            further = None if words or cut else _differs_further(held, classifier, noise)
            if further is not None:
                found.not_assessed.append(
                    f"the file answers as the float model does on images, and differently on noise {further:g} times "
                    "as bright: what it does beyond the values of common images was not compared"
                )
                return None
            if words:
                found.not_assessed.append(
                    f"the file takes images that are {words}: it was not run, and what prepares them was not compared"
                )
            return None if words else way
    assert best is not None
    judged, most = (best, _MOST_NOISE) if images is None else (best[_NOISE:], _FEW)
    if len(ways) > 1 and float(judged.double().mean()) <= most:
        found.not_assessed.append(
            f"the file leaves ReLUs to its grids of activations, and its answers differ on {_which(best, images)}"
        )
        return None
    found.notes.append(
        StructureNote(
            "answers-differ", "error",
            f"without the rounding of activations the file is another function than the float model with the file's "
            f"weights: it answers differently on {_which(best, images)}; operators, attributes or constants were "
            "changed, or the file takes images that are prepared in another way",
        )
    )  # fmt: skip
    return None


def _differs_further(held: FloatGraph, classifier: Classifier, noise: Tensor) -> float | None:
    """How many times brighter noise must be for the answers to differ; None where they do not."""
    for factor in _FAR:
        expected = _in_batches(held.module, noise * factor)
        if _differing(classifier.logits(noise * factor), expected, _step(expected)).any():
            return factor
    return None


def _which(differing: Tensor, images: ImageSet | None) -> str:
    on_noise = f"{int(differing[:_NOISE].sum())} of {_NOISE} images of noise"
    return on_noise if images is None else f"{int(differing[_NOISE:].sum())} of {len(images)} images and {on_noise}"


def _differing(answers: Tensor, expected: Tensor, step: float) -> Tensor:
    """Which images differ by more than float arithmetic explains."""
    if answers.shape != expected.shape:
        raise NotAssessable(f"it gives {answers.shape[1]} answers, the float model {expected.shape[1]}")
    return _distances(answers, expected, step) > _FLOAT_STEPS


@torch.inference_mode()
def _in_batches(module: torch.nn.Module, inputs: Tensor) -> Tensor:
    return torch.cat([module(inputs[start : start + BATCH]) for start in range(0, len(inputs), BATCH)])


def _preparations(held: FloatGraph, inputs: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Images as files may take them, and in words what was done to them."""
    yield "", inputs
    yield "multiplied by 255", inputs * 255
    normalise = _normaliser(held)
    if normalise is not None:
        yield "already normalised", _in_batches(normalise, inputs)


def _normaliser(graph: FloatGraph) -> fx.GraphModule | None:
    """What the float model does to images before its first layer; None where that is nothing."""
    module = copy.deepcopy(graph.module)
    first = next(node for node in module.graph.nodes if node.name == graph.layers[0].node).args[0]
    if not isinstance(first, fx.Node) or first.op == "placeholder":
        return None
    shape = first.meta["val"].shape if "val" in first.meta else ()
    if tuple(shape[1:]) != graph.input_shape:
        return None
    next(node for node in module.graph.nodes if node.op == "output").args = (first,)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def _compare_rounded(
    graph: FloatGraph, held: FloatGraph, model: onnx.ModelProto, plain: Unrounded, images: ImageSet, found: FileNotes
) -> None:
    """The file as it runs: its answers, and its grids of activations."""
    answers = Classifier(model, held.input_shape).logits(images.as_float())
    scheme = QuantScheme(activations=plain.activations, activation_bits=plain.levels.bit_length())
    ranges = calibrate(graph, images, scheme, batch_size=BATCH)  # grids are measured on the float model
    rounded = QuantizedModel(held, scheme, ranges.placement, ranges.activations, {}, ranges.output_step).simulate()
    _judge_answers(
        answers, _in_batches(held.module, images.as_float()), simulated_logits(rounded, images.images, BATCH), found
    )
    if plain.activations == "static":
        _judge_grids(held, plain, images, found)


def _judge_answers(answers: Tensor, expected: Tensor, rounded: Tensor, found: FileNotes) -> None:
    """Against the model with the file's weights, with and without rounding of activations on grids of these images."""
    step = _step(expected)
    usual = float(_distances(rounded, expected, step).quantile(1 - _FEW))
    allowed = min(max(MAX_STEPS, 2 * usual), WIDEST_STEPS)
    nearest = torch.minimum(_distances(answers, expected, step), _distances(answers, rounded, step))
    beyond = nearest > allowed
    if not (nearest > WIDEST_STEPS).any() and float(beyond.double().mean()) <= _FEW:
        return
    changed = int((answers.argmax(1) != rounded.argmax(1)).sum())
    told = (
        f"ONNX Runtime's answers to {int(beyond.sum())} of {len(beyond)} images lie more than {allowed:.3g} output "
        f"steps from those of the float model with the file's weights ({changed} are other classes)"
    )
    if float(beyond.double().mean()) <= _FEW:
        found.not_assessed.append(f"{told}; give the images that the file's activation grids were measured on")
    elif 2 * usual > WIDEST_STEPS:
        found.not_assessed.append(f"{told}; rounding the activations alone moves them by {usual:.3g}")
    else:
        detail = f"{told}; rounding the activations explains no more"
        found.notes.append(StructureNote("answers-differ", "error", detail))


def _step(expected: Tensor) -> float:
    """One output step: a 255th of the range of the logits."""
    return max(float(expected.max() - expected.min()) / 255.0, 1e-5 * float(expected.abs().max()), 1e-12)


def _distances(answers: Tensor, expected: Tensor, step: float) -> Tensor:
    """Largest logit difference of every image, in output steps."""
    return (answers - expected).abs().amax(1).nan_to_num(math.inf) / step


def _judge_grids(held: FloatGraph, plain: Unrounded, images: ImageSet, found: FileNotes) -> None:
    """Grids of activations against the ranges that the activations take; points that share a grid count as one."""
    if len(images) < _GRID_IMAGES:
        found.not_assessed.append(
            f"{len(images)} images are too few to judge grids of activations; give {_GRID_IMAGES}"
        )
        return
    classifier = Classifier(plain.model, held.input_shape, [grid.value for grid in plain.grids], optimise=False)
    classifier.logits(images.as_float())
    shared: dict[tuple[float, int], list[ActivationGrid]] = {}
    for grid in plain.grids:
        shared.setdefault((grid.scale, grid.zero_point), []).append(grid)
    bounded = {name for node in plain.model.graph.node if node.op_type in _BOUNDED for name in node.output}
    odd = []
    for grids in shared.values():
        if any(grid.value in bounded for grid in grids):
            continue
        ends = [classifier.ranges[grid.value] for grid in grids]
        low, high = min(0.0, *(end[0] for end in ends)), max(0.0, *(end[1] for end in ends))
        given = (grids[0].high - grids[0].low) * plain.levels / 255.0
        if high > low and not _NARROWEST_GRID <= given / (high - low) <= _WIDEST_GRID:
            odd.append((given / (high - low), grids[0].value))
    if len(odd) > len(shared) / 2:
        found.not_assessed.append(
            f"{len(odd)} of {len(shared)} grids of activations do not fit the images: the weights, or the images, are "
            "others than those that they were measured with"
        )
    elif odd:
        ratio, name = max(odd, key=lambda item: abs(math.log(item[0])))
        found.notes.append(
            StructureNote(
                "activation-grid-out-of-range", "warning",
                f"{len(odd)} of {len(shared)} grids of activations, most that of {name}, do not fit the images: it "
                f"covers {ratio:.3g} times the range of its values; range rules give about 1",
            )
        )  # fmt: skip
