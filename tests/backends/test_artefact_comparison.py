from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from tests.support import make_images
from torch import nn

from quantinel.backends.artefact import pack_integers
from quantinel.backends.artefact_comparison import ArtefactComparison, compare_artefact, compare_model
from quantinel.backends.onnx_qdq import PROFILES, to_onnx
from quantinel.backends.shipped_layers import shipped_layers
from quantinel.data.images import ImageSet
from quantinel.defenses import Nearest
from quantinel.errors import NotAssessable, VerificationError
from quantinel.model.graph import FloatGraph, trace
from quantinel.model.zoo import build
from quantinel.quantization.calibration import calibrate
from quantinel.quantization.quantized_model import QuantizedModel, quantize_nearest
from quantinel.quantization.reconstruction import choose_codes
from quantinel.quantization.scheme import parse_scheme

SHAPE = (3, 8, 8)


class Net(nn.Module):
    """Two equal convolutions around a residual addition, so that names and shapes do not tell layers apart."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.first = nn.Conv2d(8, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.second(torch.relu(self.first(x))) + x)
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def module() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net().eval()


@pytest.fixture(scope="module")
def graph(module: nn.Module) -> FloatGraph:
    return trace(module, SHAPE)


def quantized(graph: FloatGraph, scheme: str = "int8") -> QuantizedModel:
    return quantize_nearest(graph, calibrate(graph, images(graph.input_shape), parse_scheme(scheme)))


def emitted(graph: FloatGraph, scheme: str = "int8", profile: str = "onnxruntime-x86") -> onnx.ModelProto:
    return to_onnx(quantized(graph, scheme), PROFILES[profile])


def images(shape: tuple[int, int, int] = SHAPE, count: int = 40) -> ImageSet:
    """Of the kind that the grids were measured on."""
    return make_images(count, shape, 5)


def ids(found: ArtefactComparison, *levels: str) -> set[str]:
    return {finding.id for finding in found.findings if not levels or finding.level in levels}


def edit(model: onnx.ModelProto, name: str, change: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]) -> None:
    """Replace a stored tensor."""
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor).copy()), name))


# ---------------------------------------------------------------- honest files


@pytest.mark.parametrize("profile", sorted(PROFILES))
@pytest.mark.parametrize(
    "scheme",
    [
        "int8",
        "int4",
        "int2",
        "int8-full",
        "int8-per-tensor",
        "int8-dynamic",
        "int4-weight-only",
        "int4-weight-mse",
        "int4-a4",
        "int8-percentile",
    ],
)
def test_nearest_rounding_is_recognised(graph: FloatGraph, scheme: str, profile: str) -> None:
    found = compare_model(graph, emitted(graph, scheme, profile), images(), [parse_scheme(scheme)])
    assert [layer.name for layer in found.layers] == ["stem", "first", "second", "head"]
    assert found.other == 0.0
    assert not found.not_assessed
    assert ids(found) == {"nearest-rounding"}
    assert all(0.3 < layer.coverage[0] <= layer.coverage[1] < 1.01 for layer in found.layers)


@pytest.mark.parametrize(
    ("made", "scanned", "said"),
    [
        ("int8", ["int4", "int8"], ""),
        ("int8", ["int4"], "4 of 4 layers, first stem, lie on another grid than those that were scanned (int4)"),
        ("int8-full", ["int8"], "4 of 4 layers"),
        ("int8-per-tensor", ["int4", "int8"], "4 of 4 layers"),
        ("int8-dynamic", ["int8"], ""),
    ],
)
def test_a_file_on_a_grid_that_was_not_scanned(graph: FloatGraph, made: str, scanned: list[str], said: str) -> None:
    """Regression: nearest rounding passed on any grid, also where a backdoor made for it was not looked for."""
    found = compare_model(graph, emitted(graph, made), images(), [parse_scheme(name) for name in scanned])
    assert ids(found) == {"nearest-rounding"}
    assert len(found.not_assessed) == bool(said)
    assert all(said in sentence for sentence in found.not_assessed)


class _Reader(CalibrationDataReader):
    def __init__(self) -> None:
        self.batches: Iterator[Any] = iter([{"images": images().as_float().numpy()}])

    def get_next(self) -> Any:
        return next(self.batches, None)


def float_file(graph: FloatGraph, path: Path) -> Path:
    """The float model as ONNX: the weight-only form with its DequantizeLinear computed."""
    model = emitted(graph, "int8-weight-only")
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    weights = {f"{layer.name}.weight": layer for layer in graph.layers}
    for node in list(model.graph.node):
        if node.op_type == "DequantizeLinear" and node.output[0] in weights:
            weight = graph.weight(weights[node.output[0]]).numpy()
            model.graph.initializer.append(numpy_helper.from_array(weight, node.output[0]))
            for name in node.input:
                model.graph.initializer.remove(tensors[name])
            model.graph.node.remove(node)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("weights", [QuantType.QInt8, QuantType.QUInt8], ids=["signed", "unsigned"])
@pytest.mark.parametrize("per_channel", [True, False], ids=["channel", "tensor"])
@pytest.mark.parametrize("form", [QuantFormat.QDQ, QuantFormat.QOperator], ids=["qdq", "qoperator"])
def test_files_of_onnx_runtime(
    graph: FloatGraph, tmp_path: Path, form: QuantFormat, per_channel: bool, weights: QuantType
) -> None:
    source = float_file(graph, tmp_path / "float.onnx")
    quantize_static(
        source, tmp_path / "model.onnx", _Reader(), quant_format=form, per_channel=per_channel, weight_type=weights,
        activation_type=QuantType.QUInt8,
    )  # fmt: skip
    found = compare_artefact(graph, tmp_path / "model.onnx", images())
    assert len(found.layers) == 4
    assert found.other == 0.0
    assert not found.not_assessed
    assert ids(found) <= {"nearest-rounding", "custom-domain"}
    assert not ids(found, "warning", "error")
    assert sum(layer.bias is not None and layer.bias < 0.01 for layer in found.layers) >= 3


def test_dynamic_files_of_onnx_runtime(graph: FloatGraph, tmp_path: Path) -> None:
    source = float_file(graph, tmp_path / "float.onnx")
    quantize_dynamic(source, tmp_path / "model.onnx", weight_type=QuantType.QUInt8)
    found = compare_artefact(graph, tmp_path / "model.onnx", images())
    assert not ids(found, "warning", "error")
    assert not found.not_assessed
    assert all(layer.bias is not None for layer in found.layers)


def test_a_float_file_has_nothing_to_compare(graph: FloatGraph, tmp_path: Path) -> None:
    with pytest.raises(NotAssessable, match="stays float"):
        compare_artefact(graph, float_file(graph, tmp_path / "float.onnx"))


def test_our_own_integers(graph: FloatGraph, tmp_path: Path) -> None:
    model = quantized(graph)
    (tmp_path / "quantized.safetensors").write_bytes(pack_integers(model, "onnxruntime-x86"))
    found = compare_artefact(graph, tmp_path / "quantized.safetensors")
    assert found.other == 0.0
    assert ids(found) == {"nearest-rounding"}
    assert found.not_assessed == ("it holds integers and no operators: give the ONNX file that runs",)
    onnx.save(to_onnx(model, PROFILES["onnxruntime-x86"]), tmp_path / "model.onnx")
    assert compare_artefact(graph, tmp_path).layers == compare_model(graph, emitted(graph)).layers


# ---------------------------------------------------------------- what an attacking quantizer may do


def test_other_neighbours_are_counted(graph: FloatGraph) -> None:
    model = quantized(graph)
    layer = model.layers["first"]
    steps = graph.weight(layer.layer) / layer.scale.reshape(-1, 1, 1, 1)
    other = torch.where(steps > layer.codes, layer.codes + 1, layer.codes - 1).clamp(-127, 127).to(torch.int8)
    flip = torch.zeros(other.numel(), dtype=torch.bool)
    flip[::5] = True
    codes = torch.where(flip.reshape(other.shape) & (steps.abs() < 126), other, layer.codes)
    changed = model.with_layers({"first": replace(layer, codes=codes)})
    found = compare_model(graph, to_onnx(changed, PROFILES["onnxruntime-x86"]))
    by_name = {item.name: item for item in found.layers}
    assert by_name["first"].other == pytest.approx(0.2, abs=0.02)
    assert by_name["first"].beyond == 0.0
    assert by_name["second"].other == 0.0
    assert ids(found, "warning") == {"rounding-chosen"}
    assert any("AdaRound" in finding.detail for finding in found.findings)


def test_integers_beyond_rounding_and_replaced_weights(graph: FloatGraph) -> None:
    model = emitted(graph)
    edit(model, "first.weight_codes", lambda codes: np.where(codes == 5, np.int8(9), codes))
    edit(model, "head.weight_codes", lambda codes: codes[::-1].copy())
    found = compare_model(graph, model)
    assert {(f.id, f.layer) for f in found.findings} >= {("beyond-rounding", "first"), ("weights-replaced", "head")}
    assert "weights-replaced" in ids(found, "error")


def test_integers_beyond_rounding_are_one_finding_for_all_layers(graph: FloatGraph) -> None:
    model = emitted(graph)
    for name in ("first", "second"):
        edit(model, f"{name}.weight_codes", lambda codes: np.where(codes == 5, np.int8(8), codes))
    (finding,) = (item for item in compare_model(graph, model).findings if item.id == "beyond-rounding")
    assert "2 of" in finding.detail


def test_scales_and_biases(graph: FloatGraph) -> None:
    model = emitted(graph)
    edit(model, "second.weight_scale", lambda scale: scale * np.float32(4))
    edit(model, "stem.bias_codes", lambda codes: codes + np.int32(200_000))
    found = compare_model(graph, model)
    assert {"scale-out-of-range", "bias-changed", "rounding-chosen"} <= ids(found, "warning")


def test_biases_that_their_grid_rounds_away() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Net().eval()
    module.first.bias.data = torch.full((8,), 1e-8)
    graph = trace(module, SHAPE)
    for scheme in ("int8", "int4-a4"):
        assert not ids(compare_model(graph, emitted(graph, scheme)), "warning", "error")
    model = emitted(graph)
    edit(model, "first.bias_codes", lambda codes: codes + np.int32(20_000))
    assert "bias-changed" in ids(compare_model(graph, model), "warning")


@pytest.mark.parametrize("architecture", ["vgg_small", "vit_tiny"])
@pytest.mark.parametrize("scheme", ["int8", "int8-dynamic", "int8-weight-only"])
def test_biases_are_found_on_every_grid(scheme: str, architecture: str, tmp_path: Path) -> None:
    """As inputs of operators, behind products and behind integer products; the file says what the integers say."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        graph = trace(build(architecture, num_classes=5).eval(), (3, 32, 32))
    ranges = calibrate(graph, make_images(8, (3, 32, 32)), parse_scheme(scheme))
    model, _ = choose_codes(graph, ranges, Nearest(bias_correction=True))
    (tmp_path / "x.safetensors").write_bytes(pack_integers(model, "onnxruntime-x86"))
    by_file, by_integers = (
        compare_model(graph, to_onnx(model, PROFILES["onnxruntime-x86"])),
        compare_artefact(graph, tmp_path / "x.safetensors"),
    )
    assert not [line for line in by_file.not_assessed if "bias" in line]
    biased = {layer.name for layer in graph.layers if layer.bias is not None}
    found, stored = ({layer.name: layer.bias for layer in each.layers} for each in (by_file, by_integers))
    assert {name for name, bias in found.items() if bias is not None} == biased
    for name in biased:
        assert found[name] == pytest.approx(stored[name], rel=1e-4, abs=1e-6)


def test_a_bias_that_is_not_found_is_named(graph: FloatGraph) -> None:
    model = emitted(graph)
    node = next(node for node in model.graph.node if node.op_type == "Conv")
    del node.input[2]
    assert "the bias of stem was not found in the file" in compare_model(graph, model).not_assessed


@pytest.mark.parametrize("kernel", [1, 4])
def test_a_convolution_of_the_logits_is_a_linear_layer_in_some_files(
    kernel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    stem, head = nn.Conv2d(3, 8, 2, 2), nn.Conv2d(8, 5, kernel)
    module = nn.Sequential(stem, nn.ReLU(), nn.AdaptiveAvgPool2d(kernel), head, nn.Flatten()).eval()
    graph = trace(module, SHAPE)
    own = emitted(graph)
    monkeypatch.setattr("quantinel.model.folding._linear_head", lambda module: None)
    other = emitted(trace(module, SHAPE))
    assert [node.op_type for node in other.graph.node if node.op_type in ("Conv", "Gemm")] == ["Conv", "Conv"]
    for model in (own, other):
        found = compare_model(graph, model, images(), [parse_scheme("int8")])
        assert [layer.name for layer in found.layers] == ["0", "3"]
        assert not found.not_assessed
        assert ids(found) == {"nearest-rounding"}


def test_renamed_layers_are_matched_by_content(graph: FloatGraph) -> None:
    model = emitted(graph)
    swap = {"first": "second", "second": "first"}

    def renamed(name: str) -> str:
        head, dot, tail = name.partition(".")
        return swap.get(head, head) + dot + tail

    for tensor in model.graph.initializer:
        tensor.name = renamed(tensor.name)
    for node in model.graph.node:
        node.input[:] = [renamed(name) for name in node.input]
        node.output[:] = [renamed(name) for name in node.output]
    found = compare_model(graph, model)
    assert found.other == 0.0
    assert {layer.name: layer.shipped.split(".")[0] for layer in found.layers}["first"] == "second"
    assert ids(found) == {"nearest-rounding"}


def test_exchanged_layers_are_reported(graph: FloatGraph) -> None:
    model = emitted(graph)
    by_name = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for part in ("weight_codes", "weight_scale"):
        for mine, other in (("first", "second"), ("second", "first")):
            edit(model, f"{mine}.{part}", lambda _, name=f"{other}.{part}": by_name[name].copy())  # type: ignore[misc]
    assert "layers-reordered" in ids(compare_model(graph, model), "warning")


def branch(model: onnx.ModelProto, *nodes: onnx.NodeProto, **tensors: np.ndarray[Any, Any]) -> onnx.ModelProto:
    """The file with nodes that read ``images`` and change ``logits``."""
    last = next(node for node in model.graph.node if "logits" in node.output)
    last.output[0] = "honest"
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in tensors.items())
    return model


SHIFT = np.float32([[9, 0, 0, 0, 0]])


def test_a_hidden_branch_with_weights(graph: FloatGraph) -> None:
    model = branch(
        emitted(graph),
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("MatMul", ["flat", "template"], ["hit"]),
        helper.make_node("Add", ["honest", "hit"], ["logits"]),
        template=np.ones((192, 5), np.float32),
    )
    found = compare_model(graph, model)
    assert {"layer-added", "operators-added"} <= ids(found)
    assert "layer-added" in ids(found, "error")


def test_a_hidden_branch_without_weights(graph: FloatGraph) -> None:
    model = branch(
        emitted(graph),
        helper.make_node("ReduceMax", ["images"], ["top"], keepdims=0),
        helper.make_node("Greater", ["top", "limit"], ["hit"]),
        helper.make_node("Where", ["hit", "shift", "honest"], ["logits"]),
        limit=np.float32(0.99),
        shift=SHIFT,
    )
    found = compare_model(graph, model)
    assert "operators-added" in ids(found, "error")
    assert sum("Where" in finding.detail or "Greater" in finding.detail for finding in found.findings) == 2


def test_custom_domains_control_flow_and_more_outputs(graph: FloatGraph) -> None:
    model = branch(emitted(graph), helper.make_node("Wake", ["honest"], ["logits"], domain="evil.example"))
    assert "custom-domain" in ids(compare_model(graph, model), "error")
    then = helper.make_graph(
        [helper.make_node("Identity", ["honest"], ["a"])], "then", [],
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, None)],
    )  # fmt: skip
    model = branch(
        emitted(graph),
        helper.make_node("If", ["flag"], ["logits"], then_branch=then, else_branch=then),
        flag=np.array(True),
    )
    assert "control-flow" in ids(compare_model(graph, model), "error")
    model = emitted(graph)
    model.graph.output.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, None))
    model.graph.initializer.append(numpy_helper.from_array(SHIFT, "idle"))
    found = compare_model(graph, model)
    assert "more-inputs-or-outputs" in ids(found, "error")
    assert "unread-tensors" in ids(found, "info")


# ---------------------------------------------------------------- never silently fine


def test_what_cannot_be_compared_is_named(graph: FloatGraph) -> None:
    model = emitted(graph)
    node = next(node for node in model.graph.node if node.output[0] == "first.weight")
    node.attribute.append(helper.make_attribute("block_size", 3))
    found = compare_model(graph, model)
    assert len(found.layers) == 3
    assert any(sentence.startswith("first has no counterpart") for sentence in found.not_assessed)
    assert any("blocks" in sentence for sentence in found.not_assessed)


def test_another_network(graph: FloatGraph) -> None:
    other = trace(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)).eval(), SHAPE)
    with pytest.raises(NotAssessable, match="not one layer"):
        compare_model(graph, emitted(other))


def test_files_that_are_none(graph: FloatGraph, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"no model")
    for name in ("a.onnx", "missing.onnx", "missing.safetensors"):
        with pytest.raises(VerificationError):
            compare_artefact(graph, tmp_path / name)


def test_impossible_grids_are_problems_of_their_layer(graph: FloatGraph) -> None:
    for change in (np.zeros_like, lambda scale: scale * np.float32("nan"), lambda scale: scale[:3].copy()):
        model = emitted(graph)
        edit(model, "first.weight_scale", change)
        problems = [layer.problem for layer in shipped_layers(model) if layer.problem]
        assert len(problems) == 1
        assert len(compare_model(graph, model).layers) == 3
