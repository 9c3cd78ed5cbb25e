"""The audited integers on disk: ``quantized.safetensors``, readable without this project's code."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from quantinel.backends.emitted_graph import EmittedGraph
from quantinel.backends.verification import Tolerance
from quantinel.errors import UsageError, VerificationError, first_line
from quantinel.model.graph import FloatGraph, Layer
from quantinel.quantization.calibration import ActivationParameters
from quantinel.quantization.placement import Placement, place
from quantinel.quantization.quantized_model import QuantizedLayer, QuantizedModel
from quantinel.quantization.scheme import QuantScheme

FORMAT = "quantinel-integers-1"


@dataclass(frozen=True)
class StoredIntegers:
    """What ``quantized.safetensors`` holds.

    Attributes:
        layers: by name.
        activations: parameters by point.
        output_step: unit of logit differences.
        scheme: the grid.
        profile: storage profile of the emitted file.
        tolerance: allowed distance between the runtime and the simulation.
        graph: of the emitted file; None where the integers were stored without one (between stages of a benchmark).
    """

    layers: dict[str, QuantizedLayer]
    activations: dict[str, ActivationParameters]
    output_step: float
    scheme: QuantScheme
    profile: str
    tolerance: Tolerance
    graph: EmittedGraph | None


def pack_integers(
    model: QuantizedModel, profile: str, tolerance: Tolerance | None = None, graph: EmittedGraph | None = None
) -> bytes:
    """Serialize what `verify` compares a file with; equal in, equal bytes.

    Args:
        model: codes, scales, biases and activation parameters.
        profile: storage profile of the emitted file.
        tolerance: allowed distance between the runtime and the simulation; the smallest one if None.
        graph: of the emitted file; None where none was emitted.
    """
    tolerance = tolerance or Tolerance()
    tensors: dict[str, Tensor] = {}
    layers = []
    for name, layer in model.layers.items():
        tensors[f"{name}.weight_codes"] = layer.codes.contiguous()
        tensors[f"{name}.weight_scale"] = layer.scale.contiguous()
        if layer.bias_codes is not None and layer.bias_scale is not None:
            tensors[f"{name}.bias_codes"] = layer.bias_codes.contiguous()
            tensors[f"{name}.bias_scale"] = layer.bias_scale.contiguous()
        elif (bias := model.bias(layer)) is not None:
            # A layer that is called twice has one float bias; the library refuses tensors that share memory.
            tensors[f"{name}.bias"] = bias.detach().clone(memory_format=torch.contiguous_format)
        layers.append({"name": name, "kind": layer.layer.kind, "groups": layer.layer.groups})
    metadata = {
        "format": FORMAT,
        "layers": json.dumps(layers),
        "activations": json.dumps(
            {point: [value.scale, value.zero_point] for point, value in model.activations.items()}
        ),
        "output_step": repr(model.output_step),
        "scheme": json.dumps(model.scheme.to_dict()),
        "profile": profile,
        "tolerance": json.dumps([tolerance.steps, tolerance.agreement]),
    }
    if graph is not None:
        metadata["graph"] = graph.to_json()
    return _ordered(save(tensors, metadata))


def _ordered(file: bytes) -> bytes:
    """The same file with sorted metadata: the library writes them in an order of its own every time."""
    length = int.from_bytes(file[:8], "little")
    header = json.loads(file[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors stay aligned
    return len(text).to_bytes(8, "little") + text + file[8 + length :]


def restore(graph: FloatGraph, stored: StoredIntegers) -> QuantizedModel:
    """The quantized network of a traced float network and its stored integers.

    Raises:
        VerificationError: the integers belong to another network.
    """
    scheme = stored.scheme
    static = scheme.activations == "static"
    placement = Placement((), {}) if scheme.activations == "none" else place(graph, inputs_only=not static)
    layers = {layer.name: layer for layer in graph.layers}
    if list(layers) != list(stored.layers) or any(
        stored.layers[name].codes.shape != graph.weight(layer).shape for name, layer in layers.items()
    ):
        raise VerificationError("the stored integers belong to another network; harden this one again")
    if static and set(stored.activations) != set(placement.points):
        raise VerificationError("the stored activation grids belong to another network; harden this one again")
    restored = {name: replace(stored.layers[name], layer=layer) for name, layer in layers.items()}
    return QuantizedModel(graph, scheme, placement, stored.activations, restored, stored.output_step)


def read_integers(path: Path) -> StoredIntegers:
    """Read ``quantized.safetensors``.

    Raises:
        VerificationError: missing, truncated, not of this format, or with values that no hardening writes.
    """
    try:
        with safe_open(str(path), framework="pt") as archive:
            metadata: Mapping[str, str] = archive.metadata() or {}
            tensors = {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118
        if metadata.get("format") != FORMAT:
            raise ValueError("it is of another format")
        scheme = QuantScheme(**json.loads(metadata["scheme"]))
        entries = json.loads(metadata["layers"])
        points = json.loads(metadata["activations"]).items()
        activations = {str(point): _activation(point, float(scale), zero) for point, (scale, zero) in points}
        if bool(activations) != (scheme.activations == "static"):
            raise ValueError("its activation grids do not belong to its scheme")
        return StoredIntegers(
            {str(entry["name"]): _layer(entry, tensors) for entry in entries},
            activations,
            _output_step(float(metadata["output_step"])),
            scheme,
            metadata["profile"],
            Tolerance(*(float(item) for item in json.loads(metadata["tolerance"]))),
            EmittedGraph.from_json(metadata["graph"]) if "graph" in metadata else None,
        )
    except (
        OSError, SafetensorError, KeyError, ValueError, TypeError, AttributeError, OverflowError,
        RecursionError, UsageError,
    ) as error:  # fmt: skip
        reason = first_line(error)[:120]
        raise VerificationError(f"{path} is missing or was changed ({reason}); harden the model again") from error


def _layer(entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> QuantizedLayer:
    name = str(entry["name"])
    kind: Literal["conv", "linear"] = "conv" if entry["kind"] == "conv" else "linear"
    codes, scale = tensors[f"{name}.weight_codes"], tensors[f"{name}.weight_scale"]
    bias_codes, bias_scale, bias = (tensors.get(f"{name}.{item}") for item in ("bias_codes", "bias_scale", "bias"))
    if codes.dtype != torch.int8 or codes.ndim < 2 or codes.numel() == 0:
        raise ValueError(f"the codes of {name} are no int8 weight")
    if (bias_codes is None) != (bias_scale is None) or (bias_codes is not None and bias_codes.dtype != torch.int32):
        raise ValueError(f"the bias codes of {name} are not int32 with a scale")
    for values, sizes in ((scale, (1, len(codes))), (bias_codes, (len(codes),)), (bias_scale, (1, len(codes))),
                          (bias, (len(codes),))):  # fmt: skip
        if values is not None and (values.ndim != 1 or len(values) not in sizes):
            raise ValueError(f"scales or biases of {name} do not fit its {len(codes)} channels")
    for values in (scale, bias_scale, bias):
        if values is not None and (values.dtype != torch.float32 or not values.isfinite().all()):
            raise ValueError(f"scales or biases of {name} are not finite float32")
    if not (scale > 0).all():
        raise ValueError(f"the scales of {name} are not positive")
    return QuantizedLayer(
        Layer(name, "", kind, "", None, int(entry["groups"])), codes, scale, bias_codes, bias_scale, bias
    )


def _activation(point: str, scale: float, zero: Any) -> ActivationParameters:
    if not (0 < scale < math.inf and zero in range(256)):
        raise ValueError(f"the activation grid of {point} is none")
    return ActivationParameters(scale, int(zero))


def _output_step(value: float) -> float:
    if not 0 < value < math.inf:
        raise ValueError(f"the output step is {value}")
    return value
