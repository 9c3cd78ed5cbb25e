"""Whatever an emitted file computes beside the audited integers is found, and the first difference is named."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.support import make_images, random_integers
from torch import nn

from quantinel.backends.emitted_graph import EmittedGraph, describe, graph_problem
from quantinel.backends.onnx_qdq import PROFILES, to_onnx
from quantinel.backends.verification import parse_onnx
from quantinel.data.images import ImageSet
from quantinel.errors import VerificationError
from quantinel.model.graph import FloatGraph, trace
from quantinel.model.zoo import build


@pytest.fixture(scope="module")
def emitted(odd_graph: FloatGraph) -> onnx.ModelProto:
    return to_onnx(random_integers(odd_graph, make_images(8), "int8"), PROFILES["onnxruntime-x86"])


def copy(model: onnx.ModelProto) -> onnx.ModelProto:
    return onnx.ModelProto.FromString(model.SerializeToString())


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("scheme", ["int8", "int8-dynamic", "int4-weight-only", "int8-a6"])
def test_a_file_is_itself(odd_graph: FloatGraph, images: ImageSet, scheme: str, profile: str) -> None:
    """Also when the description and the file were written and read again."""
    model = to_onnx(random_integers(odd_graph, images, scheme), PROFILES[profile])
    described = describe(model)
    assert EmittedGraph.from_json(described.to_json()) == described
    assert graph_problem(copy(model), EmittedGraph.from_json(described.to_json())) is None


@pytest.mark.parametrize("name", ["vit_tiny", "mobilenetv2_small"])
def test_architectures(name: str) -> None:
    graph = trace(build(name, num_classes=5).eval(), (3, 32, 32))
    model = to_onnx(random_integers(graph, make_images(4, (3, 32, 32)), "int8"), PROFILES["onnxruntime-x86"])
    assert graph_problem(copy(model), describe(model)) is None


def test_names_of_values_and_operators_do_not_count(emitted: onnx.ModelProto) -> None:
    changed = copy(emitted)
    for node in changed.graph.node:
        node.name = f"other {node.name}"
        for names in (node.input, node.output):
            names[:] = [name if name in ("", "images", "logits") else f"x.{name}" for name in names]
    for tensor in changed.graph.initializer:
        tensor.name = f"x.{tensor.name}"
    assert graph_problem(changed, describe(emitted)) is None


def last(model: onnx.ModelProto) -> str:
    """Take the last operator away; returns what it read."""
    value = model.graph.node[-1].input[0]
    del model.graph.node[-1]
    return value


def constant(model: onnx.ModelProto, array: object, name: str) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return name


def float_branch(model: onnx.ModelProto) -> None:
    """A detector of a pattern in float, and a large logit where it is found."""
    value = last(model)
    weight = constant(model, np.ones((5, 3, 16, 16), np.float32), "w")
    model.graph.node.extend(
        [
            helper.make_node("Conv", ["images", weight], ["t0"]),
            helper.make_node("Flatten", ["t0"], ["t1"]),
            helper.make_node("Relu", ["t1"], ["t2"]),
            helper.make_node("Add", [value, "t2"], ["logits"]),
        ]
    )


def condition(model: onnx.ModelProto) -> None:
    value = last(model)
    branches = [
        helper.make_graph(
            [helper.make_node("Identity", [value], [name])],
            name,
            [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)],
        )
        for name in ("then", "else")
    ]
    switch = constant(model, np.asarray(True), "switch")
    node = helper.make_node("If", [switch], ["logits"], then_branch=branches[0], else_branch=branches[1])
    model.graph.node.append(node)


def function(model: onnx.ModelProto) -> None:
    value = last(model)
    opset = helper.make_opsetid("", model.opset_import[0].version)
    body = [helper.make_node("Identity", ["a"], ["b"])]
    model.functions.append(helper.make_function("own", "Own", ["a"], ["b"], body, [opset]))
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.graph.node.append(helper.make_node("Own", [value], ["logits"], domain="own"))


def domain(model: onnx.ModelProto) -> None:
    model.graph.node[-1].domain = "com.microsoft"


def overridable(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))


def second_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("second", TensorProto.FLOAT, [1]))


def second_output(model: onnx.ModelProto) -> None:
    value = model.graph.node[-2].output[0]
    model.graph.output.append(helper.make_tensor_value_info(value, TensorProto.FLOAT, None))


def renamed_output(model: onnx.ModelProto) -> None:
    model.graph.node[-1].output[0] = model.graph.output[0].name = "answers"


def other_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = model.graph.node[-2].output[0]


def dead(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Relu", ["images"], ["dead"], name="Relu_dead"))


def removed(model: onnx.ModelProto) -> None:
    last(model)
    model.graph.output[0].name = model.graph.node[-1].output[0]


def leaky(model: onnx.ModelProto) -> None:
    next(node for node in model.graph.node if node.op_type == "Relu").op_type = "LeakyRelu"


def attribute(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == "Conv")
    next(item for item in node.attribute if item.name == "strides").ints[:] = [1, 2]


def second_attribute(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == "Conv")
    node.attribute.insert(0, helper.make_attribute("strides", [2, 2]))


def unknown_type(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.elem_type = 99


def rewired(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == "Add")
    node.input[1] = node.input[0]


def other_constant(model: onnx.ModelProto) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name.endswith(".zero_point"))
    tensor.CopyFrom(numpy_helper.from_array(np.uint8(200), tensor.name))


def unread_constant(model: onnx.ModelProto) -> None:
    constant(model, np.zeros(3, np.float32), "unread")


def other_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version += 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (float_branch, "(Conv '') takes the place of Identity"),
        (condition, "(If) holds operators of its own"),
        (function, "functions of its own ('Own')"),
        (domain, "is of the domain 'com.microsoft'"),
        (overridable, "2 inputs and 1 outputs"),
        (second_input, "2 inputs and 1 outputs"),
        (second_output, "1 inputs and 2 outputs"),
        (renamed_output, "output: answers FLOAT"),
        (other_output, "audited logits FLOAT"),
        (dead, "(Relu 'Relu_dead') was added"),
        (removed, "(Identity) is missing"),
        (leaky, "takes the place of Relu"),
        (attribute, "the attributes of operator"),
        (second_attribute, "the attributes of operator"),
        (unknown_type, "output: logits unknown"),
        (rewired, "the inputs of operator"),
        (other_constant, "the inputs of operator"),
        (unread_constant, "number of constants"),
        (other_opset, "operator sets: ai.onnx 18, audited ai.onnx 17"),
    ],
)
def test_changes_are_named(emitted: onnx.ModelProto, change: Callable[[onnx.ModelProto], None], message: str) -> None:
    changed = copy(emitted)
    change(changed)
    assert message in (graph_problem(changed, describe(emitted)) or "")


def test_the_only_input_is_no_constant(emitted: onnx.ModelProto) -> None:
    changed = copy(emitted)
    constant(changed, np.zeros((1, 3, 16, 16), np.float32), "images")
    assert "whoever runs it can replace it" in (graph_problem(changed, describe(emitted)) or "")


def test_tensors_inside_operators_are_compared(emitted: onnx.ModelProto) -> None:
    """The writer has no Constant operators; what one holds still counts."""
    models = []
    for value in (1.0, 2.0):
        changed = copy(emitted)
        tensor = numpy_helper.from_array(np.float32(value))
        changed.graph.node.insert(0, helper.make_node("Constant", [], ["inner"], value=tensor))
        models.append(changed)
    assert "the attributes of operator 0" in (graph_problem(models[0], describe(models[1])) or "")
    models[0].graph.node[0].attribute[0].t.dims[:] = [7, 7]
    with pytest.raises(VerificationError, match="cannot be read"):
        graph_problem(models[0], describe(models[1]))


def test_models_of_their_own_differ(odd_net: nn.Module, emitted: onnx.ModelProto) -> None:
    """A network with BatchNorm left in place, against the folded one."""
    graph = trace(odd_net, (3, 16, 16), fold_batch_norm=False)
    other = to_onnx(random_integers(graph, make_images(8), "int8"), PROFILES["onnxruntime-x86"])
    assert graph_problem(other, describe(emitted)) is not None


def claimed_shape(model: onnx.ModelProto) -> None:
    value = next(node.output[0] for node in model.graph.node if node.op_type == "Relu")
    model.graph.value_info.append(helper.make_tensor_value_info(value, TensorProto.FLOAT, [1, 8, 16, 16]))


def preparation(model: onnx.ModelProto) -> None:
    model.metadata_props.add(key="Image.BitmapPixelFormat", value="Bgr8")


def kind_of_image(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.denotation = "IMAGE"


@pytest.mark.parametrize(
    ("change", "field"),
    [(claimed_shape, "value_info"), (preparation, "metadata_props"), (kind_of_image, "denotation")],
)
def test_what_the_description_does_not_cover_is_refused(
    emitted: onnx.ModelProto, change: Callable[[onnx.ModelProto], None], field: str
) -> None:
    """Regression: fields that runtimes read and nobody compared."""
    changed = copy(emitted)
    change(changed)
    assert f".{field})" in str(graph_problem(changed, describe(emitted)))


def test_fields_of_later_versions_are_refused(emitted: onnx.ModelProto) -> None:
    later = onnx.ModelProto.FromString(emitted.SerializeToString() + b"\xc2\x0c\x05hello")  # field 200
    assert "does not know" in str(graph_problem(later, describe(emitted)))


def test_names_that_are_no_text_and_attributes_of_functions(emitted: onnx.ModelProto) -> None:
    """Regression: they ended as a bug of the program."""
    with pytest.raises(VerificationError, match="no valid ONNX file"):
        parse_onnx(emitted.SerializeToString().replace(b"stem.weight_codes", b"\xfftem.weight_codes"))
    changed = copy(emitted)
    next(node for node in changed.graph.node if node.op_type == "Conv").attribute[0].ref_attr_name = "outer"
    with pytest.raises(VerificationError, match="no valid ONNX file"):
        parse_onnx(changed.SerializeToString())
