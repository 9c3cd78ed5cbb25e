"""`verify` on folders that somebody changed, with a manifest that was made to agree."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from onnx.external_data_helper import set_external_data
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.support import SHAPE, make_images
from torch import nn

from quantinel.backends.artefact import read_integers
from quantinel.backends.verification import Tolerance
from quantinel.data.images import ImageSet
from quantinel.defenses import Nearest
from quantinel.errors import VerificationError
from quantinel.files import sha256_file
from quantinel.model.loading import LoadedModel, load_model
from quantinel.pipeline.harden import HardenOptions, harden
from quantinel.pipeline.verify import VerifyResult, verify
from quantinel.quantization.scheme import parse_scheme


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


def test_each_picture_counts_once(model: LoadedModel, tmp_path: Path) -> None:
    """Regression: 40 copies of one picture, given or in the probe, were an agreement of 100.00 % [91.24, 100.00]."""
    copies = make_images(1).take(torch.zeros(40, dtype=torch.int64))
    harden(model, make_images(40), tmp_path / "out", HardenOptions(rounding=Nearest()), calibration=copies)
    checks = {check.id: check for check in verify(tmp_path / "out", copies).checks}
    for name in ("runtime-agrees", "runtime-consistent"):
        assert checks[name].status == "pass"
        assert "n = 1)" in checks[name].detail


class _Contrast(nn.Module):
    """Answers to dark images as widely as to bright ones."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 8, 3, bias=False), nn.Conv2d(8, 8, 3, bias=False)
        self.norm, self.head = nn.LayerNorm(8, eps=1e-12), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.norm(self.body(self.stem(x).relu()).mean((2, 3))))
        return logits


def test_dynamic_ranges_are_those_of_one_image(tmp_path: Path) -> None:
    """Regression: answers with the ranges of other batches were compared, and their distance counted as noise."""
    torch.manual_seed(0)
    images = make_images(128).images
    images[:122] //= 64
    images[:30] = images[0]
    mixed = ImageSet(images, None, "mixed")
    options = HardenOptions(scheme=parse_scheme("int8-dynamic"), rounding=Nearest())
    model = load_model(_Contrast().eval(), input_shape=SHAPE)
    report = harden(model, make_images(40, seed=1), tmp_path / "out", options, calibration=mixed)
    result = verify(tmp_path / "out", mixed)
    compared = [check for check in [*report.checks, *result.checks] if check.id.startswith("runtime-")]
    assert [check.status for check in compared] == ["pass"] * 3, compared
    assert read_integers(tmp_path / "out" / "quantized.safetensors").tolerance == Tolerance()


def test_without_probe_the_simulation_is_not_compared(model: LoadedModel, tmp_path: Path) -> None:
    options = HardenOptions(rounding=Nearest(), calibration_images=16, keep_probe=False)
    harden(model, make_images(48), tmp_path / "out", options)
    for data, verdict in ((None, "INCONCLUSIVE"), (make_images(8, seed=3), "PASS")):
        result = verify(tmp_path / "out", data)
        check = next(check for check in result.checks if check.id == "runtime-agrees")
        assert result.verdict == verdict
        assert check.status == "not_run"
        assert "agreement with the audited simulation could not be tested" in check.detail


def change_tensors(folder: Path, name: str, change: Callable[[dict[str, torch.Tensor], dict[str, str]], None]) -> None:
    """Change tensors and metadata of a safetensors file."""
    with safe_open(str(folder / name), framework="pt") as archive:
        metadata = dict(archive.metadata() or {})
        tensors = {key: archive.get_tensor(key) for key in archive.keys()}  # noqa: SIM118
    change(tensors, metadata)
    save_file(tensors, folder / name, metadata)
    agree(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("scheme", '{"foo": 1}'), ("scheme", "[1]"), ("scheme", '{"weight_bits": 99}'), ("scheme", "[" * 100_000),
        ("scheme", '{"activations": "none"}'), ("activations", "{}"),
        ("tolerance", "[1e30, 0]"), ("tolerance", "[16.1, 95]"), ("tolerance", "[16, 94.9]"),
        ("tolerance", "[NaN, NaN]"), ("tolerance", "[1, 99, 99]"), ("output_step", "0"), ("output_step", "-1"),
        ("output_step", "nan"), ("output_step", "inf"), ("output_step", "1e30"), ("activations", "[]"),
        ("activations", '{"x": [0, 1]}'), ("activations", '{"x": [1, 1e999]}'), ("layers", "null"),
        ("layers", '{"a": 1}'), ("graph", "[]"), ("graph", '{"operators": [1], "frame": {}}'),
    ],
)  # fmt: skip
def test_stored_values_that_no_hardening_writes(folder: Path, key: str, value: str) -> None:
    """Regression: a wide tolerance let everything pass, and others ended as a bug of the program."""
    change_tensors(folder, "quantized.safetensors", lambda _, metadata: metadata.update({key: value}))
    with pytest.raises(VerificationError) as caught:
        verify(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("stem.weight_codes", torch.Tensor.float),
        ("stem.weight_codes", lambda codes: codes.to(torch.int16)),
        ("stem.weight_codes", torch.Tensor.flatten),
        ("stem.weight_scale", lambda scale: scale[:2].clone()),
        ("stem.weight_scale", lambda scale: scale * 0),
        ("stem.weight_scale", lambda scale: scale * float("nan")),
        ("stem.weight_scale", torch.Tensor.double),
        ("stem.bias_codes", torch.Tensor.long),
        ("stem.bias_codes", lambda codes: codes[:2].clone()),
        ("stem.bias_scale", torch.Tensor.double),
    ],
)
def test_stored_tensors_of_another_type(
    folder: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """Regression: float codes were cut off to integers."""
    change_tensors(
        folder, "quantized.safetensors", lambda tensors, _: tensors.update({name: change(tensors[name]).contiguous()})
    )
    with pytest.raises(VerificationError, match="of stem"):
        verify(folder)


@pytest.mark.parametrize(
    ("images", "logits", "message"),
    [
        (None, torch.zeros(16, 4), "another model"),
        (None, torch.zeros(16, 1), "no images with their logits"),
        (None, torch.zeros(15, 5), "no images with their logits"),
        (None, torch.tensor(1.0), "no images with their logits"),
        (None, torch.zeros(16, 5, dtype=torch.int64), "no images with their logits"),
        (None, torch.full((16, 5), float("nan")), "no images with their logits"),
        (torch.zeros(16, 3, 8, 8, dtype=torch.uint8), None, "another model"),
        (torch.zeros(0, *SHAPE, dtype=torch.uint8), torch.zeros(0, 5), "no images with their logits"),
    ],
)
def test_probes_of_another_model(
    folder: Path, images: torch.Tensor | None, logits: torch.Tensor | None, message: str
) -> None:
    """Regression: they ended as a bug of the program."""
    stored = load_file(folder / "probe.safetensors")
    changed = {
        "images": stored["images"] if images is None else images,
        "logits": stored["logits"] if logits is None else logits,
    }
    save_file(changed, folder / "probe.safetensors")
    agree(folder)
    with pytest.raises(VerificationError, match=message):
        verify(folder)


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", '{"outputs": []}', '{"outputs": 1}', "{}"])
def test_manifests_that_are_none(folder: Path, text: str) -> None:
    """Regression: brackets without end were a bug of the program."""
    (folder / "manifest.json").write_text(text)
    with pytest.raises(VerificationError, match="no manifest"):
        verify(folder)


def test_a_manifest_lists_model_and_integers(folder: Path) -> None:
    """Regression: with nothing listed, all recorded hashes agreed."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "outputs": {}}))
    result = verify(folder)
    assert result.verdict == "FAIL"
    assert "does not list model.onnx; the manifest does not list quantized.safetensors; " in result.checks[0].detail
    assert result.checks[0].detail.endswith("and 5 more")


def test_additional_files_are_named(folder: Path) -> None:
    """Regression: another model beside the audited one was passed over."""
    shutil.copy(folder / "model.onnx", folder / "model_int8.onnx")
    result = verify(folder)
    assert result.verdict == "FAIL"
    assert "model_int8.onnx was added" in result.checks[0].detail


@pytest.mark.parametrize("name", ["manifest.json", "model.onnx", "quantized.safetensors", "more"])
def test_a_pipe_is_refused_and_not_waited_for(folder: Path, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(VerificationError, match=f"{name} is no regular file"):
        verify(folder)


def test_tensors_in_other_files_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Regression: they were compared as they lie in the current folder, and executed as they lie in the model's."""
    monkeypatch.chdir(folder.parent)

    def outside(model: onnx.ModelProto) -> None:
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "stem.weight_scale")
        scale = numpy_helper.to_array(tensor)
        (folder.parent / "scale.bin").write_bytes(scale.tobytes())
        (folder / "scale.bin").write_bytes((scale * np.float32(1.02)).tobytes())
        tensor.raw_data = scale.tobytes()
        set_external_data(tensor, "scale.bin")
        tensor.ClearField("raw_data")

    change_model(folder, outside)
    with pytest.raises(VerificationError, match=r"keeps its tensor 'stem\.weight_scale' in"):
        verify(folder)


def test_images_of_another_shape(folder: Path) -> None:
    other = ImageSet(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), None, "other")
    with pytest.raises(VerificationError, match="resize"):
        verify(folder, other)
