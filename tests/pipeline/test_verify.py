"""`verify` on folders that somebody changed, with a manifest that was made to agree."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from safetensors.torch import load_file, save_file
from tests.support import SHAPE, make_images
from torch import nn

from quantinel.data.images import ImageSet
from quantinel.defenses import Nearest
from quantinel.errors import VerificationError
from quantinel.files import sha256_file
from quantinel.model.loading import LoadedModel, load_model
from quantinel.pipeline.harden import HardenOptions, harden
from quantinel.pipeline.verify import VerifyResult, verify


@pytest.fixture(scope="module")
def model(odd_net: nn.Module) -> LoadedModel:
    return load_model(odd_net, input_shape=SHAPE)


@pytest.fixture(scope="module")
def hardened(model: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hardened") / "out"
    harden(model, make_images(48), folder, HardenOptions(rounding=Nearest(), calibration_images=16))
    return folder


@pytest.fixture
def folder(hardened: Path, tmp_path: Path) -> Path:
    """A copy to be changed."""
    return Path(shutil.copytree(hardened, tmp_path / "copy"))


def change_model(folder: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    model = onnx.load(folder / "model.onnx")
    change(model)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    agree(folder)


def agree(folder: Path) -> None:
    """Make the manifest agree with what lies in the folder."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["outputs"] = {name: sha256_file(folder / name) for name in manifest["outputs"]}
    path.write_text(json.dumps(manifest))


def status(result: VerifyResult) -> dict[str, str]:
    return {check.id: check.status for check in result.checks}


def branch(model: onnx.ModelProto) -> None:
    """A float detector of bright images behind the audited network; it sleeps on the probe."""
    value = model.graph.node[-1].input[0]
    del model.graph.node[-1]
    weight, bias = np.full((5, *SHAPE), 1 / np.prod(SHAPE), np.float32), np.full(5, -0.99, np.float32)
    model.graph.initializer.extend([numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")])
    model.graph.node.extend(
        [
            helper.make_node("Conv", ["images", "w", "b"], ["t0"]),
            helper.make_node("Flatten", ["t0"], ["t1"]),
            helper.make_node("Relu", ["t1"], ["t2"]),
            helper.make_node("Add", [value, "t2"], ["logits"]),
        ]
    )


def test_a_branch_that_sleeps_on_the_probe_is_found(folder: Path) -> None:
    """Regression: integers and probe logits are the audited ones, and the verdict was PASS."""
    change_model(folder, branch)
    for data in (None, make_images(8, seed=3)):
        result = verify(folder, data)
        assert result.verdict == "FAIL"
        assert status(result) == {
            "hashes": "pass", "integers-equal": "pass", "graph-equal": "fail", "runtime-agrees": "not_run",
            "integer-execution": "not_run",
        }  # fmt: skip
    assert "(Conv '') takes the place of Identity" in result.checks[2].detail


def test_harden_reports_the_graph(hardened: Path) -> None:
    checks = {check["id"]: check for check in json.loads((hardened / "report.json").read_text())["checks"]}
    assert checks["graph-equal"]["status"] == "pass"


def test_given_images_come_on_top_of_the_probe(folder: Path) -> None:
    """Regression: with --data the file was held against itself, and the audited logits were not looked at."""
    images = make_images(8, seed=3)
    assert status(verify(folder, images)) == {
        "hashes": "pass", "integers-equal": "pass", "graph-equal": "pass", "runtime-agrees": "pass",
        "runtime-consistent": "pass", "integer-execution": "pass",
    }  # fmt: skip
    tensors = load_file(folder / "probe.safetensors")
    save_file({**tensors, "logits": tensors["logits"].flip(1).contiguous()}, folder / "probe.safetensors")
    agree(folder)
    result = verify(folder, images)
    assert result.verdict == "FAIL"
    assert status(result)["runtime-agrees"] == "fail"
    assert status(result)["runtime-consistent"] == "pass"


def test_without_probe_the_simulation_is_not_compared(model: LoadedModel, tmp_path: Path) -> None:
    options = HardenOptions(rounding=Nearest(), calibration_images=16, keep_probe=False)
    harden(model, make_images(48), tmp_path / "out", options)
    for data, verdict in ((None, "INCONCLUSIVE"), (make_images(8, seed=3), "PASS")):
        result = verify(tmp_path / "out", data)
        check = next(check for check in result.checks if check.id == "runtime-agrees")
        assert result.verdict == verdict
        assert check.status == "not_run"
        assert "agreement with the audited simulation could not be tested" in check.detail


def test_images_of_another_shape(folder: Path) -> None:
    other = ImageSet(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), None, "other")
    with pytest.raises(VerificationError, match="resize"):
        verify(folder, other)
