"""Re-open an emitted file and prove that it holds the audited integers and runs as simulated."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor

from quantinel.backends.activation_grids import activation_problems
from quantinel.backends.layer_readers import LayerReader, codes_name, layer_readers
from quantinel.backends.onnx_constants import Array, external_tensor, read_constants
from quantinel.backends.onnx_fields import check_fields
from quantinel.data.images import as_float
from quantinel.errors import VerificationError
from quantinel.metrics import Proportion, agreement
from quantinel.quantization.calibration import ActivationParameters
from quantinel.quantization.quantized_model import QuantizedLayer
from quantinel.quantization.scheme import QuantScheme

MAX_STEPS = 4.0
"""Largest tolerated logit difference, in output steps (one 255th of the calibrated logit range).

Float convolution sums in another order than integer ones, so single activations fall on the other side of a
rounding boundary; the differences that this causes at the output were at most 2 to 3 steps in what was measured.
"""
MIN_AGREEMENT = 99.5
"""Smallest tolerated top-1 agreement in percent: the 95 % interval of what was measured must reach it."""


WIDEST_STEPS = 16.0
"""Output steps beyond which no noise of a network explains a difference."""
_LOWEST_AGREEMENT = 95.0
_TOLERANCE_IMAGES = 128
"""Images for the float64 run: double precision has no fast kernels."""
_TOLERANCE_BATCH = 32
"""Largest batch of that run: a number takes twice the memory."""
_COMPARED_BATCH = 64
"""Images per run where answers are compared: at 224x224, 250 of them take gigabytes."""


@dataclass(frozen=True)
class Tolerance:
    """How far a correct execution may lie from the simulation.

    Attributes:
        steps: largest logit difference, in output steps; at most 16.
        agreement: smallest top-1 agreement, percent; at least 95.
    """

    steps: float = MAX_STEPS
    agreement: float = MIN_AGREEMENT

    def __post_init__(self) -> None:
        if not (0 <= self.steps <= WIDEST_STEPS and _LOWEST_AGREEMENT <= self.agreement <= 100):
            raise ValueError(
                f"a tolerance of {self.steps} output steps and {self.agreement} % agreement is none: at most "
                f"{WIDEST_STEPS:g} steps and at least {_LOWEST_AGREEMENT:g} % are allowed"
            )


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
    constants = read_constants(model)
    found = layer_readers(model)
    equal, different = [], {}
    for name, layer in layers.items():
        problem = _layer_problem(layer, found.get(codes_name(name), ()), constants)
        if problem is None:
            equal.append(name)
        else:
            different[name] = problem
    audited = {codes_name(name) for name in layers}
    for codes in found.keys() - audited:
        different[f"tensor {codes}"] = "an operator multiplies with these integers, which were not audited"
    different.update(activation_problems(model, activations, constants))
    return IntegerComparison(tuple(equal), different)


def _layer_problem(layer: QuantizedLayer, readers: Sequence[LayerReader], constants: Mapping[str, Array]) -> str | None:
    """What differs first, or None."""
    if not readers:
        return "no operator of the file reads this layer's integers"
    stored = readers[0]
    if len(readers) > 1 or stored.readers > 1:
        return "more than one operator of the file reads this layer's integers"
    if stored.scale is None:
        return "its product is not rescaled by one stored scale"
    missing = [name for name in (stored.codes, stored.scale, stored.zero) if name and name not in constants]
    if missing:
        return f"{missing[0]} is not stored in the file"
    codes = constants[stored.codes]
    if codes.dtype not in (np.int8, np.uint8):
        return f"weight codes are stored as {codes.dtype}, not in 8 bits"
    zero = np.zeros(1, codes.dtype) if stored.zero is None else constants[stored.zero]
    if zero.dtype != codes.dtype or np.unique(zero).size != 1:
        return "zero points differ between channels, or are of another type than the codes"
    codes = codes.astype(np.int16) - zero.astype(np.int16).reshape(-1)[0]
    codes = codes.T if stored.transposed else codes
    expected = layer.codes.numpy().astype(np.int16)
    if codes.shape != expected.shape:
        return f"weight has shape {codes.shape} instead of {expected.shape}"
    if not np.array_equal(codes, expected):
        return f"{int((codes != expected).sum())} of {expected.size} weight codes differ"
    if not np.array_equal(constants[stored.scale].reshape(-1), layer.scale.numpy().reshape(-1)):
        return "weight scales differ"
    return _bias_problem(layer, stored, constants)


def _bias_problem(layer: QuantizedLayer, stored: LayerReader, constants: Mapping[str, Array]) -> str | None:
    """Integer biases are compared as integers; what the file adds in float, with the value that they stand for."""
    bias = constants.get(stored.bias or "")
    if layer.bias_codes is not None and layer.bias_scale is not None and stored.bias_scale is not None:
        scale, zero = constants.get(stored.bias_scale), constants.get(stored.bias_zero or "")
        if bias is None or not np.array_equal(bias, layer.bias_codes.numpy()):
            return "bias codes differ"
        if scale is None or not np.array_equal(scale, layer.bias_scale.numpy()):
            return "bias scales differ"
        if stored.bias_zero is not None and (zero is None or zero.any()):
            return "bias zero points are not 0"
        return None
    expected = layer.bias()
    if expected is None:
        unknown = stored.own_bias and layer.layer.bias is None  # a bias of the float layer is none of the integers
        return "the file adds a bias that was not audited" if unknown else None
    if stored.bias_scale is not None or bias is None or not np.array_equal(bias.reshape(-1), expected.numpy()):
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
        """Within tolerance: all disagreements are near ties, and no more than chance adds to the tolerated ones."""
        return (
            self.max_steps <= self.tolerance.steps
            and self.unexplained == 0
            and self.agreement.interval[1] >= self.tolerance.agreement
        )


def compared_batch(scheme: QuantScheme) -> int:
    """Images per run, on both sides, where answers are compared.

    Dynamic activation ranges are those of the batch: there each image runs alone, and its answer depends neither on
    the images beside it nor on how many of them are copies.
    """
    return 1 if scheme.activations == "dynamic" else _COMPARED_BATCH


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
    return parse_onnx(read_onnx(path), str(path))


def read_onnx(path: Path) -> bytes:
    """The bytes of an ONNX file.

    Raises:
        VerificationError: missing or not readable.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise VerificationError(f"{path} cannot be read ({error.strerror}); harden the model again") from error


def parse_onnx(data: bytes, name: str = "the emitted model") -> onnx.ModelProto:
    """Check a serialized ONNX model.

    Raises:
        VerificationError: truncated, not valid, or with tensors in other files.
    """
    try:
        model = onnx.load_from_string(data)
        check_fields(model)
        outside = external_tensor(model)
        if outside is None:
            onnx.checker.check_model(model)
    except Exception as error:  # protobuf and the checker raise classes of their own
        raise VerificationError(f"{name} is no valid ONNX file; it is truncated or was changed") from error
    if outside is not None:
        raise VerificationError(
            f"{name} keeps its tensor {outside[:80]!r} in another file; write the model as one file"
        )
    return model


@torch.inference_mode()
def simulated_logits(module: torch.nn.Module, images: Tensor, batch_size: int = 250) -> Tensor:
    """Logits (N, K) of a torch module on uint8 images (N, C, H, W)."""
    batches = (as_float(images[start : start + batch_size]) for start in range(0, len(images), batch_size))
    parts = [module(batch.contiguous(memory_format=torch.channels_last)) for batch in batches]
    return torch.cat(parts)


@torch.inference_mode()
def measure_tolerance(
    module: torch.nn.Module, images: Tensor, simulated: Tensor, output_step: float, batch_size: int = _COMPARED_BATCH
) -> Tolerance:
    """The tolerance of one model, from two executions that are both correct: float32 and float64 simulation.

    In a deep network one activation on the other side of a rounding boundary moves many others: on EfficientNet-Lite0
    at 224x224 (1,000 classes) the two simulations lie 4.3 steps apart, as does any runtime. Twice that distance is
    allowed, up to 16 steps and 95 % agreement; the emitted file has no part in it, so an error in it cannot widen it.

    Args:
        module: ``simulate()``.
        images: (N, C, H, W) uint8.
        simulated: (N, K), its logits on them in float32.
        output_step: unit of differences.
        batch_size: that of ``simulated``, see `compared_batch`; batches of more than 32 are cut to that.
    """
    batch_size = min(batch_size, _TOLERANCE_BATCH)
    images, simulated = images[:_TOLERANCE_IMAGES], simulated[:_TOLERANCE_IMAGES]
    precise = copy.deepcopy(module).double()
    try:
        parts = [precise(as_float(batch).double()).float() for batch in torch.split(images, batch_size)]
    except RuntimeError:  # a model with float32 written into it cannot run in double precision
        return Tolerance()
    noise = compare_outputs(torch.cat(parts), simulated, output_step)
    return Tolerance(
        min(max(MAX_STEPS, 2 * noise.max_steps), WIDEST_STEPS),
        max(min(MIN_AGREEMENT, 100.0 - 2 * (100.0 - noise.agreement.percent)), _LOWEST_AGREEMENT),
    )
