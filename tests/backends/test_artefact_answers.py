"""Files whose integers are innocent and whose other parts were changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from tests.backends.test_artefact_comparison import Net, branch, edit, emitted, ids, images
from tests.support import make_images
from torch import nn

from quantinel.backends.artefact_comparison import compare_model
from quantinel.backends.onnx_execution import Classifier
from quantinel.errors import NotAssessable
from quantinel.model.graph import FloatGraph, trace
from quantinel.model.normalization import Normalized

SHAPE = (3, 8, 8)
NOT_RUN = "the file was not run: give images of the model's kind with --data"
Change = Callable[[onnx.ModelProto], object]


@pytest.fixture(scope="module")
def graph() -> FloatGraph:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return trace(Normalized(Net(), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)).eval(), SHAPE)


def operator(model: onnx.ModelProto, name: str, index: int = 0) -> onnx.NodeProto:
    return [node for node in model.graph.node if node.op_type == name][index]


def swap_logits(model: onnx.ModelProto) -> None:
    branch(model, helper.make_node("Gather", ["honest", "order"], ["logits"], axis=1), order=np.int64([1, 0, 2, 3, 4]))


def add_to_a_class(model: onnx.ModelProto) -> None:
    branch(model, helper.make_node("Add", ["honest", "v"], ["logits"]), v=np.float32([[9, 0, 0, 0, 0]]))


def multiply_logits(model: onnx.ModelProto) -> None:
    branch(model, helper.make_node("Mul", ["honest", "v"], ["logits"]), v=np.float32([[-5, 1, 1, 1, 1]]))


def normalise_otherwise(model: onnx.ModelProto) -> None:
    edit(model, "mean", lambda mean: mean * np.float32(0.5))


def take_another_activation(model: onnx.ModelProto) -> None:
    operator(model, "Conv", 2).input[0] = operator(model, "Conv", 1).input[0]


def bend_otherwise(model: onnx.ModelProto) -> None:
    operator(model, "Relu").op_type = "Abs"


def dilate(model: onnx.ModelProto) -> None:
    for item in operator(model, "Conv", 1).attribute:
        if item.name in ("dilations", "pads"):
            item.ints[:] = [2] * len(item.ints)


def undo_another_scale(model: onnx.ModelProto) -> None:
    read = next(n for n in model.graph.node if n.op_type == "DequantizeLinear" and n.output[0].startswith("relu"))
    scale = next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == read.input[1])
    model.graph.initializer.append(numpy_helper.from_array(scale * np.float32(1.5), "other"))
    read.input[1] = "other"


CHANGES = [
    swap_logits, add_to_a_class, multiply_logits, normalise_otherwise, take_another_activation, bend_otherwise, dilate,
    undo_another_scale,
]  # fmt: skip


@pytest.mark.parametrize("with_images", [True, False], ids=["images", "noise"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_another_function_with_the_same_integers(graph: FloatGraph, change: Change, with_images: bool) -> None:
    model = emitted(graph)
    change(model)
    onnx.checker.check_model(model)
    found = compare_model(graph, model, images() if with_images else None)
    assert found.other == 0.0
    assert "answers-differ" in ids(found, "error")
    (finding,) = (item for item in found.findings if item.id == "answers-differ")
    assert ("of 40 images" in finding.detail) == with_images
    assert "of 16 images of noise" in finding.detail


@pytest.mark.parametrize("factor", [8.0, 0.02])
def test_a_grid_of_activations_that_does_not_fit(graph: FloatGraph, factor: float) -> None:
    model = emitted(graph)
    name = operator(model, "QuantizeLinear", 1).input[1]
    edit(model, name, lambda scale: scale * np.float32(factor))
    found = compare_model(graph, model, images())
    assert "activation-grid-out-of-range" in ids(found, "warning")
    assert (factor > 1) or "answers-differ" in ids(found, "error")


JOINS = {
    "Mean": lambda: [helper.make_node("Mean", ["honest", "hit"], ["logits"])],
    "PRelu": lambda: [helper.make_node("PRelu", ["honest", "hit"], ["logits"])],
    "Pow": lambda: [helper.make_node("Pow", ["honest", "hit"], ["logits"])],
    "Clip": lambda: [helper.make_node("Clip", ["honest", "", "peak"], ["logits"])],
    "Gemm": lambda: [helper.make_node("Gemm", ["honest", "eye", "hit"], ["logits"])],
    "Einsum": lambda: [helper.make_node("Einsum", ["honest", "hit"], ["logits"], equation="bk,bk->bk")],
}


@pytest.mark.parametrize("name", sorted(JOINS))
def test_every_operator_that_joins_computed_values_counts(graph: FloatGraph, name: str) -> None:
    model = branch(
        emitted(graph),
        helper.make_node("ReduceMax", ["images"], ["top"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Unsqueeze", ["top", "last"], ["hit"]),
        helper.make_node("ReduceMax", ["top"], ["peak"], keepdims=0),
        *JOINS[name](),
        last=np.int64([1]),
        eye=np.eye(5, dtype=np.float32),
    )
    found = compare_model(graph, model)
    assert any(f"1 more {name} on computed values" in finding.detail for finding in found.findings)


def test_a_branch_beside_an_integer_product(graph: FloatGraph) -> None:
    """What is joined to the accumulator of a dynamic file is no rescaling."""
    model = emitted(graph, "int8-dynamic")
    nodes = list(model.graph.node)
    cast = next(node for node in nodes if node.op_type == "Cast")
    place = nodes.index(cast)
    hit = helper.make_node("ReduceMax", ["images"], ["hit"], keepdims=0)
    joined = helper.make_node("Add", ["plain", "hit"], [cast.output[0]])
    cast.output[0] = "plain"
    del model.graph.node[:]
    model.graph.node.extend([*nodes[: place + 1], hit, joined, *nodes[place + 1 :]])
    onnx.checker.check_model(model)
    assert "operators-added" in ids(compare_model(graph, model))


def test_a_range_measured_at_run_time_detects_nothing_else(graph: FloatGraph) -> None:
    """The scale of a dynamic grid says how bright an image is."""
    model = branch(
        emitted(graph, "int8-dynamic"),
        helper.make_node("DynamicQuantizeLinear", ["images"], ["codes", "brightness", "middle"]),
        helper.make_node("Sub", ["brightness", "limit"], ["more"]),
        helper.make_node("Relu", ["more"], ["hit"]),
        helper.make_node("Add", ["honest", "hit"], ["logits"]),
        limit=np.float32(2),
    )
    onnx.checker.check_model(model)
    found = compare_model(graph, model, images())
    assert "operators-added" in ids(found)


def test_a_file_that_treats_a_single_image_otherwise(graph: FloatGraph) -> None:
    """Cut to as many classes as there are images, and filled up with zeros."""
    model = branch(
        emitted(graph),
        helper.make_node("Shape", ["images"], ["shape"]),
        helper.make_node("Slice", ["shape", "zero", "one"], ["batch"]),
        helper.make_node("Slice", ["honest", "zero", "batch", "one"], ["some"]),
        helper.make_node("Sub", ["five", "batch"], ["short"]),
        helper.make_node("Max", ["short", "zero"], ["missing"]),
        helper.make_node("Concat", ["zeros", "missing"], ["pads"], axis=0),
        helper.make_node("Pad", ["some", "pads"], ["logits"]),
        zero=np.int64([0]),
        one=np.int64([1]),
        five=np.int64([5]),
        zeros=np.int64([0, 0, 0]),
    )
    onnx.checker.check_model(model)
    found = compare_model(graph, model, images())
    (finding,) = (item for item in found.findings if item.level != "info")
    assert "0 of 40 images and 1 of 16 images of noise" in finding.detail


def test_without_images_nothing_passes(graph: FloatGraph) -> None:
    found = compare_model(graph, emitted(graph))
    assert ids(found) == {"nearest-rounding"}
    assert found.not_assessed == (NOT_RUN,)


def test_few_images_judge_no_grids(graph: FloatGraph) -> None:
    (sentence,) = compare_model(graph, emitted(graph), images(count=8)).not_assessed
    assert "8 images are too few" in sentence


def test_an_operator_that_the_model_does_not_have_is_named(graph: FloatGraph) -> None:
    model = branch(
        emitted(graph),
        helper.make_node("Exp", ["honest"], ["positive"]),
        helper.make_node("Log", ["positive"], ["logits"]),
    )
    found = compare_model(graph, model, images())
    assert not ids(found, "warning", "error")
    assert {sentence.split(" on ")[0] for sentence in found.not_assessed} == {
        "the file has 1 Exp", "the file has 1 Log"
    }  # fmt: skip


def test_a_join_less_is_named(graph: FloatGraph) -> None:
    model = emitted(graph)
    addition = operator(model, "Add", -1)
    addition.input[1] = addition.input[0]
    addition.op_type = "Identity"
    del addition.input[1]
    assert any("the float model by 1" in sentence for sentence in compare_model(graph, model).not_assessed)


def test_a_file_that_takes_normalised_images(graph: FloatGraph) -> None:
    model = emitted(graph)
    first = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
    for node in list(model.graph.node):
        if node.op_type in ("Sub", "Div"):
            model.graph.node.remove(node)
    first.input[0] = "images"
    (sentence,) = compare_model(graph, model, images()).not_assessed
    assert "already normalised" in sentence


def test_a_file_that_takes_bytes_as_numbers(graph: FloatGraph) -> None:
    model = emitted(graph)
    for node in model.graph.node:
        node.input[:] = ["scaled" if name == "images" else name for name in node.input]
    model.graph.node.insert(0, helper.make_node("Div", ["images", "white"], ["scaled"]))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(255), "white"))
    added, taken = compare_model(graph, model, images()).not_assessed
    assert "7 Add, Sub, Mul or Div with stored numbers" in added
    assert "multiplied by 255" in taken


def test_more_joined_by_one_operator(graph: FloatGraph) -> None:
    model = emitted(graph)
    operator(model, "Add", -1).op_type = "Sum"
    assert "operators-added" not in ids(compare_model(graph, model))
    operator(model, "Sum").input.append(operator(model, "Sum").input[0])
    assert "operators-added" in ids(compare_model(graph, model))


def test_channels_last(graph: FloatGraph) -> None:
    model = emitted(graph)
    for node in model.graph.node:
        node.input[:] = ["turned" if name == "images" else name for name in node.input]
    model.graph.node.insert(0, helper.make_node("Transpose", ["images"], ["turned"], perm=[0, 3, 1, 2]))
    sizes = model.graph.input[0].type.tensor_type.shape.dim
    for dimension, size in zip(sizes[1:], (8, 8, 3), strict=True):
        dimension.dim_value = size
    found = compare_model(graph, model, images())
    assert not found.not_assessed
    assert ids(found) == {"nearest-rounding"}


def test_a_batch_of_fixed_size(graph: FloatGraph) -> None:
    model = emitted(graph)
    for item in (model.graph.input[0], model.graph.output[0]):
        item.type.tensor_type.shape.dim[0].dim_value = 3
    found = compare_model(graph, model, images())
    assert not found.not_assessed


def test_files_that_cannot_be_run_are_undecided(graph: FloatGraph) -> None:
    model = branch(emitted(graph), helper.make_node("Wake", ["honest"], ["logits"], domain="com.microsoft"))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    assert any("ONNX Runtime refuses it" in item for item in compare_model(graph, model, images()).not_assessed)
    model = emitted(graph)
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 9
    assert any("it takes images of shape" in item for item in compare_model(graph, model, images()).not_assessed)


PIXELS = int(np.prod(SHAPE))


def stored(name: str, value: np.ndarray[Any, Any]) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value, "value"))


def through_a_column(*, numbers_first: bool) -> Change:
    """The images with one more column, which a checkerboard in a corner lifts above a step, and which is then added to
    all pixels: nothing is joined, and the products are none of the layers."""
    pattern = np.zeros(SHAPE, np.float32)
    pattern[:, :2, :2] = [[1, -1], [-1, 1]]
    widen = np.vstack([np.eye(PIXELS, dtype=np.float32), pattern.reshape(1, -1)]).T
    narrow = np.vstack([np.eye(PIXELS, dtype=np.float32), np.full((1, PIXELS), 50, np.float32)])
    steps = np.append(np.full(PIXELS, 2.0**40), 1 / 5.5).astype(np.float32)

    def change(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            node.input[:] = ["changed" if name == "images" else name for name in node.input]
        nodes = [
            helper.make_node("Flatten", ["images"], ["flat"]),
            *([helper.make_node("Transpose", ["flat"], ["given"])] if numbers_first else []),
            helper.make_node("MatMul", ["widen", "given"] if numbers_first else ["flat", "widen"], ["wide"]),
            helper.make_node("Mul", ["wide", "steps"], ["scaled"]),
            helper.make_node("Cast", ["scaled"], ["whole"], to=onnx.TensorProto.INT64),
            helper.make_node("Cast", ["whole"], ["float"], to=onnx.TensorProto.FLOAT),
            helper.make_node("Mul", ["float", "undone"], ["wide again"]),
            helper.make_node(
                "MatMul", ["narrow", "wide again"] if numbers_first else ["wide again", "narrow"], ["end"]
            ),
            *([helper.make_node("Transpose", ["end"], ["rows"])] if numbers_first else []),
            helper.make_node("Reshape", ["rows" if numbers_first else "end", "shape"], ["changed"]),
        ]
        undone = np.append(np.full(PIXELS, 2.0**-40), 1).astype(np.float32)
        tensors = {"widen": widen, "narrow": narrow, "steps": steps[None], "undone": undone[None]}
        tensors = {name: value.T.copy() if numbers_first else value for name, value in tensors.items()}
        nodes = [*(stored(name, value) for name, value in tensors.items()), *nodes]
        for index, node in enumerate(nodes):
            model.graph.node.insert(index, node)
        model.graph.initializer.append(numpy_helper.from_array(np.int64([-1, *SHAPE]), "shape"))

    return change


@pytest.mark.parametrize("scheme", ["int8", "int8-dynamic", "int8-weight-only"])
@pytest.mark.parametrize("numbers_first", [True, False])
def test_a_branch_that_joins_nothing_and_decides_nothing(graph: FloatGraph, numbers_first: bool, scheme: str) -> None:
    """Regression: it passed. The numbers of its products were no initializers, or stood first."""
    model = emitted(graph, scheme)
    honest = Classifier(model, SHAPE)
    through_a_column(numbers_first=numbers_first)(model)
    onnx.checker.check_model(model)
    changed, clean = Classifier(model, SHAPE), images()
    stamped = clean.as_float().clone()
    stamped[:, :, :2, :2] = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert torch.allclose(changed.logits(clean.as_float()), honest.logits(clean.as_float()), atol=1e-4)
    assert not torch.allclose(changed.logits(stamped), honest.logits(stamped), atol=1e-2)
    told = compare_model(graph, model, clean).not_assessed
    for operators in ("6 Conv, Gemm or MatMul with", "8 Add, Sub, Mul or Div with", "1 Cast on"):
        assert any(f"the file has {operators}" in sentence for sentence in told)


def test_a_loop_is_not_run(graph: FloatGraph) -> None:
    """Regression: the comparison took as long as the file liked."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["on"]),
            helper.make_node("Identity", ["value"], ["next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("count", onnx.TensorProto.INT64, []),
            helper.make_tensor_value_info("go", onnx.TensorProto.BOOL, []),
            helper.make_tensor_value_info("value", onnx.TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("on", onnx.TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", onnx.TensorProto.FLOAT, None),
        ],
    )
    model = branch(
        emitted(graph), helper.make_node("Loop", ["times", "", "honest"], ["logits"], body=body), times=np.int64(2**62)
    )
    onnx.checker.check_model(model)
    found = compare_model(graph, model, images())
    assert "control-flow" in ids(found, "error")
    assert any("Loop runs operators of its own" in sentence for sentence in found.not_assessed)


def bound_a_relu(model: onnx.ModelProto) -> None:
    relu = operator(model, "Relu")
    relu.op_type = "Clip"
    relu.input.extend(["", "top"])
    model.graph.initializer.append(numpy_helper.from_array(np.float32(60), "top"))


def drop_numbers(model: onnx.ModelProto) -> None:
    branch(
        model,
        helper.make_node("Dropout", ["honest", "rate", "on"], ["logits"]),
        rate=np.float32(1e-9),
        on=np.array(True),
    )


def divide_by_them(model: onnx.ModelProto) -> None:
    branch(
        model,
        helper.make_node("Div", ["one", "honest"], ["turned"]),
        helper.make_node("Div", ["one", "turned"], ["logits"]),
        one=np.float32(1),
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [(bound_a_relu, "1 Clip"), (drop_numbers, "1 Dropout"), (divide_by_them, "2 Reciprocal")],
)
def test_what_sleeps_in_one_operator_is_named(graph: FloatGraph, change: Change, said: str) -> None:
    """Regression: an upper bound counted as a ReLU, and the others as nothing."""
    model = emitted(graph)
    change(model)
    onnx.checker.check_model(model)
    assert any(f"the file has {said}" in sentence for sentence in compare_model(graph, model, images()).not_assessed)


class Bounded(Net):
    """A ReLU6 that images like these do not reach."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(nn.functional.relu6(self.stem(x) * 0.1).mean((2, 3)))


def test_a_bound_that_images_do_not_reach() -> None:
    """Regression: another bound than the model's passed, since no image comes near either."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        graph = trace(Bounded().eval(), SHAPE)
    model = emitted(graph, "int8-dynamic")
    assert not compare_model(graph, model, images()).not_assessed
    edit(model, operator(model, "Clip").input[2], lambda bound: bound * np.float32(0.5))
    (sentence,) = compare_model(graph, model, images()).not_assessed
    assert "differently on noise 256 times as bright" in sentence


class Clipped(nn.Module):
    """ReLU6, which quantizers leave to a grid that ends there."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3)
        self.first.weight.data *= 40
        self.head = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(nn.functional.relu6(self.first(x)).mean((2, 3)))


def test_rectifiers_that_a_grid_stands_for() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        graph = trace(Clipped().eval(), SHAPE)
    model = emitted(graph)
    clip = operator(model, "Clip")
    for node in model.graph.node:
        node.input[:] = [clip.input[0] if name == clip.output[0] else name for name in node.input]
    model.graph.node.remove(clip)
    found = compare_model(graph, model, images())
    assert not ids(found, "warning", "error")
    assert not found.not_assessed


def test_ranges_of_values(graph: FloatGraph) -> None:
    classifier = Classifier(emitted(graph), SHAPE, ["images"])
    pixels = make_images(3, SHAPE).as_float()
    assert classifier.logits(pixels).shape == (3, 5)
    low, high = classifier.ranges["images"]
    assert (low, high) == (float(pixels.min()), float(pixels.max()))
    with pytest.raises(NotAssessable, match="it takes images of shape"):
        Classifier(emitted(graph), (3, 9, 9))
