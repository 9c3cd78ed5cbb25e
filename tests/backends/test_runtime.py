"""Files that ONNX Runtime loads and that have another interface than the writer gives them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from tests.support import SHAPE, make_images, random_integers

from quantinel.backends.onnx_qdq import PROFILES, to_onnx
from quantinel.backends.runtime import Session
from quantinel.errors import VerificationError
from quantinel.model.graph import FloatGraph


@pytest.fixture(scope="module")
def emitted(odd_graph: FloatGraph) -> bytes:
    data: bytes = to_onnx(random_integers(odd_graph, make_images(8), "int8"), PROFILES["openvino"]).SerializeToString()
    return data


def second_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("second", TensorProto.FLOAT, [1]))


def renamed_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = "pixels"
    for node in model.graph.node:
        node.input[:] = ["pixels" if name == "images" else name for name in node.input]


def second_output(model: onnx.ModelProto) -> None:
    model.graph.output.insert(0, helper.make_tensor_value_info("images", TensorProto.FLOAT, None))


def free_size(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"


@pytest.mark.parametrize("change", [second_input, renamed_input, second_output, free_size])
def test_another_interface_is_refused(emitted: bytes, change: Callable[[onnx.ModelProto], Any]) -> None:
    """Regression: they ended as a bug of the program, or another output was taken for the logits."""
    model = onnx.ModelProto.FromString(emitted)
    change(model)
    with pytest.raises(VerificationError, match="exactly one input 'images'"):
        Session(model.SerializeToString(), optimise=False)


def test_answers_of_another_shape_are_refused(emitted: bytes) -> None:
    """Regression: the declared shape was believed, whatever a branch returns."""
    model = onnx.ModelProto.FromString(emitted)
    value = model.graph.node[-1].input[0]
    del model.graph.node[-1]
    branches = []
    for name, source in (("then", "images"), ("else", value)):
        output = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        branches.append(helper.make_graph([helper.make_node("Identity", [source], [name])], name, [], [output]))
    model.graph.initializer.append(helper.make_tensor("switch", TensorProto.BOOL, [], [True]))
    model.graph.node.append(
        helper.make_node("If", ["switch"], ["logits"], then_branch=branches[0], else_branch=branches[1])
    )
    session = Session(model.SerializeToString(), optimise=False)
    with pytest.raises(VerificationError, match="answers 2 images with shape"):
        session.logits(make_images(2).images)


def test_what_fails_at_run_time_is_one_line(emitted: bytes) -> None:
    session = Session(emitted)
    with pytest.raises(VerificationError, match="cannot run the file") as caught:
        session.logits(torch.zeros(2, SHAPE[0], 3, 3, dtype=torch.uint8))
    assert "\n" not in str(caught.value)
