"""OpenVINO reads files of its profile as they are, runs every layer in integers, and answers as simulated."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from tests.interop.networks import NETWORKS, network
from tests.support import SHAPE, OddNet, make_images, random_integers, randomise

from quantinel.backends.onnx_qdq import PROFILES, to_onnx
from quantinel.backends.openvino_runtime import OpenVINOSession
from quantinel.backends.verification import compare_outputs, simulated_logits
from quantinel.errors import VerificationError
from quantinel.model.graph import trace

pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(
        find_spec("openvino") is None, reason="OpenVINO is not installed: pip install 'quantinel[openvino]'"
    ),
]

MAX_STEPS = 3.0
"""Largest logit difference that the specification saw in OpenVINO, in output steps."""


@pytest.mark.parametrize("name", NETWORKS)
def test_integers_run_as_simulated(name: str) -> None:
    model, images = network(name)
    session = OpenVINOSession(to_onnx(model, PROFILES["openvino"]).SerializeToString(), threads=1)
    simulated = simulated_logits(model.simulate(), images.images)
    outputs = compare_outputs(session.logits(images.images), simulated, model.output_step)
    assert outputs.agreement.percent is not None
    assert outputs.agreement.percent >= 99.5
    assert outputs.max_steps <= MAX_STEPS
    ran = session.execution(model.layers)
    assert ran.integer_layers == len(model.layers), ran


def test_without_repeated_addends_openvino_drops_roundings() -> None:
    """Why the profile exists. If this fails, OpenVINO was repaired, and the repetition can go."""
    model, images = network("resnet20")
    simulated = simulated_logits(model.simulate(), images.images)
    steps = {}
    for name in ("onnxruntime-x86", "openvino"):
        logits = OpenVINOSession(to_onnx(model, PROFILES[name]).SerializeToString(), threads=1).logits(images.images)
        steps[name] = compare_outputs(logits, simulated, model.output_step)
    assert steps["onnxruntime-x86"].max_steps > MAX_STEPS
    assert steps["onnxruntime-x86"].agreement.hits < steps["openvino"].agreement.hits


@pytest.mark.parametrize("scheme", ["int4", "int8-per-tensor-full", "int8-a6"])
def test_other_static_schemes_run_in_integers(scheme: str) -> None:
    torch.manual_seed(0)
    images = make_images(100)
    model = random_integers(trace(randomise(OddNet()), SHAPE), images, scheme)
    session = OpenVINOSession(to_onnx(model, PROFILES["openvino"]).SerializeToString(), threads=1)
    simulated = simulated_logits(model.simulate(), images.images)
    assert compare_outputs(session.logits(images.images), simulated, model.output_step).max_steps <= MAX_STEPS
    assert session.execution(model.layers).integer_layers == len(model.layers)


def test_a_broken_file_is_one_line() -> None:
    with pytest.raises(VerificationError, match="OpenVINO refuses the file") as caught:
        OpenVINOSession(b"\xff" * 100)
    assert "\n" not in str(caught.value)
