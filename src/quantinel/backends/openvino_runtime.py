"""Run an emitted file with OpenVINO, and see what it really executes. Needs the extra ``openvino``."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quantinel.backends.onnx_qdq import INPUT_NAME
from quantinel.backends.runtime import Execution
from quantinel.data.images import as_float
from quantinel.errors import UsageError, VerificationError
from quantinel.quantization.quantized_model import QuantizedLayer

_INTEGER_PRECISIONS = frozenset({"u8", "i8"})
_LAYERS = frozenset({"Convolution", "FullyConnected", "MatMul"})


class OpenVINOSession:
    """A compiled OpenVINO model on the CPU.

    Args:
        model: path or serialized bytes of the ONNX file.
        threads: 0 lets the runtime choose.
        precision: of what is not quantized. None leaves it to OpenVINO, which takes bfloat16 where the CPU has it.

    Raises:
        UsageError: OpenVINO is not installed.
        VerificationError: the runtime refuses the file.
    """

    def __init__(self, model: Path | bytes, *, threads: int = 0, precision: str | None = "f32") -> None:
        try:
            import openvino
        except ImportError as error:
            raise UsageError("OpenVINO is not installed; run pip install 'quantinel[openvino]'") from error
        config: dict[str, Any] = {} if precision is None else {"INFERENCE_PRECISION_HINT": precision}
        if threads:
            config["INFERENCE_NUM_THREADS"] = threads
        core = openvino.Core()
        try:
            self._compiled = core.compile_model(core.read_model(model), "CPU", config)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1][:200]
            raise VerificationError(f"OpenVINO refuses the file: {reason}; make it again") from error

    def logits(self, images: Tensor, batch_size: int = 250) -> Tensor:
        """Logits (N, K) of uint8 images (N, C, H, W)."""
        parts = []
        for start in range(0, len(images), batch_size):
            batch = as_float(images[start : start + batch_size]).numpy()
            parts.append(torch.from_numpy(self._compiled({INPUT_NAME: batch})[0].copy()))
        return torch.cat(parts)

    def execution(self, layers: Mapping[str, QuantizedLayer]) -> Execution:
        """What became of each quantized layer, from the runtime model.

        Args:
            layers: the audited layers; a kernel is recognised by the names of the ONNX nodes that went into it, or by
                the name of the integers that it reads.
        """
        traces = {
            name: {f"Conv_{node}", f"Gemm_{node}", f"MatMul_{node}.product", f"{name}.weight_codes"}
            for name, node in ((name, layer.layer.node) for name, layer in layers.items())
        }
        operators: dict[str, int] = {}
        by_layer: dict[str, str | None] = dict.fromkeys(layers)
        for operation in self._compiled.get_runtime_model().get_ordered_ops():
            information = operation.get_rt_info()
            kind, precision, kernel, origin = (
                information[key].astype(str) if key in information else ""
                for key in ("layerType", "runtimePrecision", "primitiveType", "originalLayersNames")
            )
            operators[f"{kind}:{precision}"] = operators.get(f"{kind}:{precision}", 0) + 1
            if kind in _LAYERS and precision in _INTEGER_PRECISIONS:
                made_of = {name.split("/")[0] for name in origin.split(",")}
                made_of |= {port.get_source_output().get_node().get_friendly_name() for port in operation.inputs()}
                by_layer.update({name: kernel for name, candidates in traces.items() if candidates & made_of})
        return Execution(operators, by_layer)


def openvino_name() -> str:
    """Runtime and version, for reports."""
    return f"openvino {metadata.version('openvino')}"
