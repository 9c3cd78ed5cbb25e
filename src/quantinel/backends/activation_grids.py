"""The activation grids of an emitted file: as every QuantizeLinear rounds, and as what reads it dequantizes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

from quantinel.backends.onnx_constants import Array
from quantinel.quantization.calibration import ActivationParameters

_SCALE = ".scale"
_BOTH = "is quantized in only one of file and audit"
_DIFFERS = "scale or zero point differs"
_OTHER_READER = "is dequantized with another scale or zero point than it was quantized with"


def activation_problems(
    model: onnx.ModelProto, audited: Mapping[str, ActivationParameters], constants: Mapping[str, Array]
) -> dict[str, str]:
    """What differs, by activation point; a point that is rounded more than once is compared every time.

    Args:
        model: the re-opened file.
        audited: parameters by point.
        constants: the file's initializers.
    """
    producers = {output: node for node in model.graph.node for output in node.output}
    problems, seen = {}, set()
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            point = _point(node)
            seen.add(point)
            expected = audited.get(point)
            if expected is None:
                problems[f"activation {point}"] = _BOTH
            elif _grid(node, constants) != (expected.scale, expected.zero_point):
                problems[f"activation {point}"] = _DIFFERS
        elif node.op_type == "DequantizeLinear" and (source := producers.get(node.input[0])) is not None:
            problem = _reader_problem(node, source, constants)
            if problem is not None:
                problems.setdefault(f"activation {_point(source)}", problem)
    return problems | {f"activation {point}": _BOTH for point in audited.keys() - seen}


def _reader_problem(node: onnx.NodeProto, source: onnx.NodeProto, constants: Mapping[str, Array]) -> str | None:
    """A DequantizeLinear must undo what stands before it, with the same numbers."""
    if source.op_type == "QuantizeLinear":
        return None if _grid(node, constants) == _grid(source, constants) else _OTHER_READER
    if source.op_type == "DynamicQuantizeLinear":
        return None if list(node.input) == list(source.output) else _OTHER_READER
    return f"is dequantized behind {source.op_type}, which does not quantize"


def _point(node: onnx.NodeProto) -> str:
    """The point whose scale a QuantizeLinear reads; the output's name for what reads no such scale."""
    name = node.input[1] if node.op_type == "QuantizeLinear" else ""
    return name.removesuffix(_SCALE) if name.endswith(_SCALE) else node.output[0]


def _grid(node: onnx.NodeProto, constants: Mapping[str, Array]) -> tuple[float, int] | None:
    """Scale and zero point of one (de)quantization of a whole tensor to uint8; None where they are not stored."""
    scale, zero = (constants.get(name) for name in [*node.input, "", ""][1:3])
    if scale is None or zero is None or scale.size != 1 or zero.size != 1 or zero.dtype != np.uint8:
        return None
    return float(scale.reshape(-1)[0]), int(zero.reshape(-1)[0])
