"""Re-open an emitted file and prove that it holds the audited integers and runs as simulated."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from quantinel.backends.onnx_bias import added_behind, readers_by_name
from quantinel.data.images import as_float
from quantinel.errors import VerificationError
from quantinel.metrics import Proportion, agreement
from quantinel.quantization.calibration import ActivationParameters
from quantinel.quantization.quantized_model import QuantizedLayer

MAX_STEPS = 4.0
"""Largest tolerated logit difference, in output steps (one 255th of the calibrated logit range).

Float convolution sums in another order than integer ones, so single activations fall on the other side of a
rounding boundary; the differences that this causes at the output were at most 2 to 3 steps in what was measured.
"""
MIN_AGREEMENT = 99.5
"""Smallest tolerated top-1 agreement in percent, where enough images were compared to resolve it."""


_WIDEST_STEPS = 16.0
_LOWEST_AGREEMENT = 95.0
_TOLERANCE_IMAGES = 128
"""Images for the float64 run: double precision has no fast kernels."""


@dataclass(frozen=True)
class Tolerance:
    """How far a correct execution may lie from the simulation.

    Attributes:
        steps: largest logit difference, in output steps.
        agreement: smallest top-1 agreement, percent.
    """

    steps: float = MAX_STEPS
    agreement: float = MIN_AGREEMENT


@dataclass(frozen=True)
class IntegerComparison:
    """Equality of the file's tensors with the audited ones.

    Attributes:
        equal: names of layers whose weight codes, scale, zero point and bias are all equal.
        different: layer -> what differs first.
    """

    equal: tuple[str, ...]
    different: dict[str, str]


def compare_integers(
    model: onnx.ModelProto,
    layers: Mapping[str, QuantizedLayer],
    activations: Mapping[str, ActivationParameters],
) -> IntegerComparison:
    """Compare every stored integer, scale and zero point with the audited ones.

    The comparison follows the graph: it takes the tensors that the layer's operator really reads, whatever
    else the file holds under the expected names.

    Args:
        model: the re-opened file.
        layers: the audited layers.
        activations: the audited activation parameters by point.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    readers = _layer_operators(model)
    equal, different = [], {}
    for name, layer in layers.items():
        problem = _layer_problem(layer, readers.get(name), tensors)
        if problem is None:
            equal.append(name)
        else:
            different[name] = problem
    for name in readers.keys() - layers.keys():
        different[name] = "the file holds a quantized layer that was not audited"
    different.update(_activation_problems(model, activations, tensors))
    return IntegerComparison(tuple(equal), different)


def _activation_problems(
    model: onnx.ModelProto,
    activations: Mapping[str, ActivationParameters],
    tensors: Mapping[str, onnx.TensorProto],
) -> dict[str, str]:
    """Points whose QuantizeLinear is missing, additional, or has other parameters."""
    found: dict[str, tuple[float, int] | None] = {}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            scale, zero = (tensors.get(name) for name in node.input[1:3])
            stored = None
            if scale is not None and zero is not None:
                stored = (float(numpy_helper.to_array(scale)), int(numpy_helper.to_array(zero)))
            found[node.input[1].removesuffix(".scale")] = stored
    problems = {}
    for point in found.keys() | activations.keys():
        audited = activations.get(point)
        expected = None if audited is None else (audited.scale, audited.zero_point)
        if point not in found or expected is None:
            problems[f"activation {point}"] = "is quantized in only one of file and audit"
        elif found[point] != expected:
            problems[f"activation {point}"] = "scale or zero point differs"
    return problems


@dataclass(frozen=True)
class _Stored:
    """Initializer names behind one Conv, Gemm, MatMul or integer product."""

    codes: str
    scale: str
    zero: str
    bias: str | None
    bias_scale: str | None
    transposed: bool


def _layer_operators(model: onnx.ModelProto) -> dict[str, _Stored]:
    """For every operator with a quantized weight: layer name -> the initializers it reads."""
    producers = {output: node for node in model.graph.node for output in node.output}
    readers = readers_by_name(model.graph.node)
    found: dict[str, _Stored] = {}
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul") and len(node.input) > 1:
            weight = producers.get(node.input[1])
            if weight is None or weight.op_type != "DequantizeLinear":
                continue
            codes, scale, zero = weight.input[0], weight.input[1], weight.input[2]
            bias = node.input[2] if len(node.input) > 2 else added_behind(node, readers)
            dequantize = producers.get(bias) if bias is not None else None
            bias_scale = None
            if dequantize is not None and dequantize.op_type == "DequantizeLinear":
                bias, bias_scale = dequantize.input[0], dequantize.input[1]
            found[_layer_name(codes)] = _Stored(codes, scale, zero, bias, bias_scale, node.op_type == "MatMul")
        elif node.op_type in ("ConvInteger", "MatMulInteger"):
            codes = node.input[1]
            scale = _layer_name(codes) + ".weight_scale"
            found[_layer_name(codes)] = _Stored(
                codes, scale, node.input[3], added_behind(node, readers), None, node.op_type == "MatMulInteger"
            )
    return found


def _layer_name(initializer: str) -> str:
    return initializer.removesuffix(".weight_codes")


def _layer_problem(
    layer: QuantizedLayer, stored: _Stored | None, tensors: Mapping[str, onnx.TensorProto]
) -> str | None:
    """What differs first, or None."""
    if stored is None:
        return "no operator of the file reads this layer's integers"
    missing = [name for name in (stored.codes, stored.scale, stored.zero) if name not in tensors]
    if missing:
        return f"{missing[0]} is not stored in the file"
    codes = numpy_helper.to_array(tensors[stored.codes]).astype(np.int16)
    zero = numpy_helper.to_array(tensors[stored.zero]).astype(np.int16)
    if np.unique(zero).size != 1:
        return "zero points differ between channels"
    codes = codes - zero.reshape(-1)[0]
    codes = codes.T if stored.transposed else codes
    expected = layer.codes.numpy().astype(np.int16)
    if codes.shape != expected.shape:
        return f"weight has shape {codes.shape} instead of {expected.shape}"
    if not np.array_equal(codes, expected):
        return f"{int((codes != expected).sum())} of {expected.size} weight codes differ"
    if not np.array_equal(numpy_helper.to_array(tensors[stored.scale]).reshape(-1), layer.scale.numpy().reshape(-1)):
        return "weight scales differ"
    return _bias_problem(layer, stored, tensors)


def _bias_problem(layer: QuantizedLayer, stored: _Stored, tensors: Mapping[str, onnx.TensorProto]) -> str | None:
    """Integer biases are compared as integers; what the file adds in float, with the value that they stand for."""
    if layer.bias_codes is not None and layer.bias_scale is not None and stored.bias_scale is not None:
        bias = numpy_helper.to_array(tensors[str(stored.bias)])
        if not np.array_equal(bias, layer.bias_codes.numpy()):
            return "bias codes differ"
        if not np.array_equal(numpy_helper.to_array(tensors[stored.bias_scale]), layer.bias_scale.numpy()):
            return "bias scales differ"
        return None
    expected = layer.bias()
    if expected is not None:
        added = tensors.get(stored.bias or "") if stored.bias_scale is None else None
        if added is None or not np.array_equal(numpy_helper.to_array(added).reshape(-1), expected.numpy()):
            return "biases differ"
    return None


@dataclass(frozen=True)
class OutputComparison:
    """Logits of the runtime against those of the simulation.

    Attributes:
        agreement: equal top-1 answers.
        max_steps: largest absolute logit difference, in output steps.
        unexplained: disagreements on images whose two best simulated logits are further apart than twice the
            tolerance, which rounding cannot explain.
        tolerance: what `passed` allows.
    """

    agreement: Proportion
    max_steps: float
    unexplained: int
    tolerance: Tolerance = Tolerance()

    @property
    def passed(self) -> bool:
        """Within tolerance; a single disagreement among fewer than 200 images must be a near tie."""
        enough = self.agreement.n >= 200
        return (
            self.max_steps <= self.tolerance.steps
            and self.unexplained == 0
            and (not enough or self.agreement.percent >= self.tolerance.agreement)
        )


def compare_outputs(
    runtime_logits: Tensor, simulated_logits: Tensor, output_step: float, tolerance: Tolerance | None = None
) -> OutputComparison:
    """Compare two sets of logits (N, K).

    Args:
        runtime_logits: from the deployed file.
        simulated_logits: from ``simulate()``.
        output_step: unit of differences.
        tolerance: of this model, see `measure_tolerance`; the smallest one if None.
    """
    tolerance = tolerance or Tolerance()
    best = simulated_logits.topk(2, dim=1).values
    margin = (best[:, 0] - best[:, 1]) / output_step
    runtime, simulated = runtime_logits.argmax(1), simulated_logits.argmax(1)
    return OutputComparison(
        agreement(runtime, simulated),
        float((runtime_logits - simulated_logits).abs().max()) / output_step,
        int(((runtime != simulated) & (margin > 2 * tolerance.steps)).sum()),
        tolerance,
    )


def load_onnx(path: Path) -> onnx.ModelProto:
    """Read and check an ONNX file.

    Raises:
        VerificationError: missing, truncated or not valid.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise VerificationError(f"{path} cannot be read ({error.strerror}); harden the model again") from error
    return parse_onnx(data, str(path))


def parse_onnx(data: bytes, name: str = "the emitted model") -> onnx.ModelProto:
    """Check a serialized ONNX model.

    Raises:
        VerificationError: truncated or not valid.
    """
    try:
        model = onnx.load_from_string(data)
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf and the checker raise classes of their own
        raise VerificationError(f"{name} is no valid ONNX file; it is truncated or was changed") from error
    return model


@torch.inference_mode()
def simulated_logits(module: torch.nn.Module, images: Tensor, batch_size: int = 250) -> Tensor:
    """Logits (N, K) of a torch module on uint8 images (N, C, H, W)."""
    batches = (as_float(images[start : start + batch_size]) for start in range(0, len(images), batch_size))
    parts = [module(batch.contiguous(memory_format=torch.channels_last)) for batch in batches]
    return torch.cat(parts)


@torch.inference_mode()
def measure_tolerance(module: torch.nn.Module, images: Tensor, simulated: Tensor, output_step: float) -> Tolerance:
    """The tolerance of one model, from two executions that are both correct: float32 and float64 simulation.

    In a deep network one activation on the other side of a rounding boundary moves many others: on EfficientNet-Lite0
    at 224x224 (1,000 classes) the two simulations lie 4.3 steps apart, as does any runtime. Twice that distance is
    allowed, up to 16 steps and 95 % agreement; the emitted file has no part in it, so an error in it cannot widen it.

    Args:
        module: ``simulate()``.
        images: (N, C, H, W) uint8.
        simulated: (N, K), its logits on them in float32.
        output_step: unit of differences.
    """
    images, simulated = images[:_TOLERANCE_IMAGES], simulated[:_TOLERANCE_IMAGES]
    precise = copy.deepcopy(module).double()
    try:
        starts = range(0, len(images), 32)
        parts = [precise(as_float(images[start : start + 32]).double()).float() for start in starts]
    except RuntimeError:  # a model with float32 written into it cannot run in double precision
        return Tolerance()
    noise = compare_outputs(torch.cat(parts), simulated, output_step)
    return Tolerance(
        min(max(MAX_STEPS, 2 * noise.max_steps), _WIDEST_STEPS),
        max(min(MIN_AGREEMENT, 100.0 - 2 * (100.0 - noise.agreement.percent)), _LOWEST_AGREEMENT),
    )
