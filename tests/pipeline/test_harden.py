"""The whole path on a small network: folder, report, verification, tampering."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import onnx
import pytest
import torch
from onnx import numpy_helper
from tests.support import SHAPE, make_images
from torch import nn

from quantinel.audit.report import read_report
from quantinel.data.images import ImageSet
from quantinel.data.triggers import PatchTrigger
from quantinel.defenses import EFRAP
from quantinel.errors import OutputError, UnsupportedError, UsageError, VerificationError
from quantinel.files import sha256_file
from quantinel.model.loading import LoadedModel, load_model
from quantinel.pipeline import harden as harden_module
from quantinel.pipeline.evaluate import check_labels, evaluate, evaluate_file
from quantinel.pipeline.harden import HardenOptions, harden
from quantinel.pipeline.verify import verify
from quantinel.quantization.scheme import QuantScheme

TRIGGER = PatchTrigger(1, 1, 4, 4)


@pytest.fixture(scope="module")
def model(odd_net: nn.Module) -> LoadedModel:
    return load_model(odd_net, input_shape=SHAPE)


@pytest.fixture(scope="module")
def data() -> ImageSet:
    return make_images(80)


@pytest.fixture(scope="module")
def hardened(model: LoadedModel, data: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hardened") / "out"
    options = HardenOptions(calibration_images=32, rounding=EFRAP(flip_weight=0.0))
    harden(model, data, folder, options, trigger=TRIGGER, target_class=1, command="test")
    return folder


def copy(folder: Path, target: Path) -> Path:
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


class _Unwritable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(SHAPE[0], 4, 3), nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(torch.fft.rfft2(self.stem(x)).abs().mean((2, 3)))
        return logits


def test_what_cannot_be_written_is_refused_before_the_long_part(
    data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_early(*_: object, **__: object) -> None:
        raise AssertionError("the integers were chosen")

    monkeypatch.setattr(harden_module, "choose_codes", too_early)
    with pytest.raises(UnsupportedError, match=r"fft_rfft2.*cannot be written"):
        harden(load_model(_Unwritable(), input_shape=SHAPE), data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folder_holds_what_it_promises(hardened: Path) -> None:
    names = {path.name for path in hardened.iterdir()}
    assert names == {
        "model.onnx", "quantized.safetensors", "probe.safetensors", "report.json", "report.html", "report.sarif",
        "recipe.toml", "README.md", "manifest.json",
    }  # fmt: skip
    manifest = json.loads((hardened / "manifest.json").read_text())
    assert manifest["outputs"] == {
        name: sha256_file(hardened / name) for name in sorted(names) if name != "manifest.json"
    }
    recipe = tomllib.loads((hardened / "recipe.toml").read_text())
    assert recipe["scheme"] == QuantScheme().to_dict()
    assert recipe["rounding_options"]["flip_weight"] == 0.0
    report = read_report(hardened / "report.json")
    assert [row.variant for row in report.evaluation] == ["float", "nearest", "hardened"]
    assert report.verification.layers_equal == report.verification.integer_layers == len(report.layers) == 6
    assert report.data["calibration"]["n"] == report.data["calibration"]["used_to_choose_integers"] == 32
    assert report.data["evaluation"]["n"] == 48
    assert len(report.examples) > 0


def test_without_images_nothing_is_green(model: LoadedModel, tmp_path: Path) -> None:
    report = harden(model, None, tmp_path / "out", HardenOptions(calibration_images=16))
    assert report.verdict == "INCONCLUSIVE"
    status = {check.id: check.status for check in report.checks}
    assert status["behaviour-kept"] == "not_run"
    assert status["integers-equal"] == status["runtime-agrees"] == status["integer-execution"] == "pass"
    assert report.data["calibration"]["name"] == "synthetic"
    assert report.data["calibration"]["n"] == report.data["calibration"]["used_to_choose_integers"] == 16
    assert report.data["evaluation"]["n"] == 0
    assert all(row.cda is None and row.agreement is None for row in report.evaluation)
    assert any("synthetic" in item for item in report.not_checked)
    assert any("real images" in item for item in report.not_checked)
    assert "Deploy" not in " ".join(report.next_steps)
    assert verify(tmp_path / "out").verdict == "PASS"  # the folder is what was written, which is all it says


def test_real_calibration_images_serve_without_evaluation(model: LoadedModel, data: ImageSet, tmp_path: Path) -> None:
    report = harden(model, None, tmp_path / "out", calibration=data)
    assert report.verdict == "INCONCLUSIVE"
    assert report.data["calibration"]["n"] == len(data)
    assert not any("synthetic" in item for item in report.not_checked)


def test_a_trigger_needs_images(model: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="tested on images"):
        harden(model, None, tmp_path / "out", trigger=TRIGGER, target_class=1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("labelled", [True, False])
def test_a_trigger_that_no_image_can_show_leaves_no_verdict(
    labelled: bool, model: LoadedModel, tmp_path: Path, odd_net: nn.Module
) -> None:
    """Regression: PASS, and "no trigger was given", where all images were of the target class."""
    images = make_images(400)
    answers = odd_net(images.images.float() / 255.0).argmax(1)
    target = int(answers.mode().values)
    chosen = images.images[answers == target][:64]
    data = ImageSet(chosen, torch.full((len(chosen),), target) if labelled else None, "one class")
    options = HardenOptions(calibration_images=16)
    report = harden(model, data, tmp_path / "out", options, trigger=TRIGGER, target_class=target)
    check = next(check for check in report.checks if check.id == "trigger-asleep")
    assert (check.status, check.required) == ("not_run", True)
    assert f"none of the {len(chosen) - 16} evaluation images is" in check.detail
    assert report.verdict == "INCONCLUSIVE"
    assert "no trigger was given" not in report.model_dump_json()
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "no image was left to measure attack success on" in card


def test_a_handful_of_images_does_not_pass(model: LoadedModel, data: ImageSet, tmp_path: Path) -> None:
    """Regression: behaviour was "kept" on a single image, and that was a PASS."""
    report = harden(model, data.take(torch.arange(17)), tmp_path / "out", HardenOptions(calibration_images=16))
    check = next(check for check in report.checks if check.id == "behaviour-kept")
    assert (check.status, report.verdict) == ("not_run", "INCONCLUSIVE")
    assert "9 different images to evaluate on say too little, at least 32 are needed" in check.detail
    assert "Deploy" not in " ".join(report.next_steps)


def test_verify_passes_with_and_without_data(hardened: Path, data: ImageSet) -> None:
    for images in (None, data):
        result = verify(hardened, images)
        assert result.verdict == "PASS", result.checks


def edit_codes(path: Path) -> None:
    proto = onnx.load(path)
    tensor = next(item for item in proto.graph.initializer if item.name == "point.weight_codes")
    array = numpy_helper.to_array(tensor).copy()
    array.reshape(-1)[:3] += 1
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(proto, path)


def refresh_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["outputs"] = {name: sha256_file(folder / name) for name in manifest["outputs"]}
    path.write_text(json.dumps(manifest))


def test_changed_integers_fail_even_with_a_forged_manifest(hardened: Path, tmp_path: Path) -> None:
    folder = copy(hardened, tmp_path / "copy")
    edit_codes(folder / "model.onnx")
    result = verify(folder)
    assert {check.id for check in result.checks if check.status == "fail"} >= {"hashes", "integers-equal"}
    refresh_manifest(folder)
    result = verify(folder)
    assert result.verdict == "FAIL"
    assert "integers-equal" in {check.id for check in result.checks if check.status == "fail"}


def test_without_probe_the_verdict_is_inconclusive(model: LoadedModel, data: ImageSet, tmp_path: Path) -> None:
    harden(model, data, tmp_path / "out", HardenOptions(calibration_images=16, keep_probe=False))
    assert verify(tmp_path / "out").verdict == "INCONCLUSIVE"
    assert verify(tmp_path / "out", data).verdict == "PASS"


@pytest.mark.parametrize("name", ["model.onnx", "quantized.safetensors", "manifest.json", "probe.safetensors"])
def test_truncated_files_are_errors_in_one_line(hardened: Path, tmp_path: Path, name: str) -> None:
    folder = copy(hardened, tmp_path / "copy")
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(VerificationError) as caught:
        verify(folder)
    assert "\n" not in str(caught.value)


def test_evaluate_agrees_with_the_report(hardened: Path, model: LoadedModel, data: ImageSet) -> None:
    report = read_report(hardened / "report.json")
    calibration = make_images(16, seed=9)
    rows = evaluate(model, data, scheme=QuantScheme(), calibration=calibration, trigger=TRIGGER, target_class=1)
    assert [row.variant for row in rows] == ["float", "nearest"]
    row = evaluate_file(hardened / "model.onnx", data, trigger=TRIGGER, target_class=1)
    assert row.cda is not None
    assert row.cda.n == 80
    assert report.evaluation[0].backend == "float"


def test_unlabeled_images_are_enough(model: LoadedModel, data: ImageSet, tmp_path: Path) -> None:
    unlabeled = ImageSet(data.images, None, "unlabeled")
    report = harden(model, unlabeled, tmp_path / "out", HardenOptions(calibration_images=32))
    assert report.evaluation[2].cda is None
    assert report.evaluation[2].agreement is not None
    assert any("no labels" in line for line in report.not_checked)


def test_existing_output_is_kept(hardened: Path, model: LoadedModel, data: ImageSet, tmp_path: Path) -> None:
    folder = copy(hardened, tmp_path / "copy")
    before = (folder / "manifest.json").read_bytes()
    with pytest.raises(UsageError, match="exists"):
        harden(model, data, folder)
    assert (folder / "manifest.json").read_bytes() == before
    harden(model, data, folder, HardenOptions(calibration_images=16, overwrite=True))
    assert (folder / "manifest.json").read_bytes() != before


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_failures_leave_nothing(
    failure: BaseException, model: LoadedModel, data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise failure

    monkeypatch.setattr(harden_module, "finish_folder", fail)
    with pytest.raises((OutputError, KeyboardInterrupt)):
        harden(model, data, tmp_path / "out", HardenOptions(calibration_images=16))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("trigger", "target", "message"),
    [(TRIGGER, None, "belong together"), (None, 1, "belong together"), (TRIGGER, 9, "not one of")],
)
def test_trigger_and_target(
    trigger: PatchTrigger | None, target: int | None, message: str, model: LoadedModel, data: ImageSet, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        harden(model, data, tmp_path / "out", trigger=trigger, target_class=target)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("ape", "bee", "cat", "dog", "elk"), [0, 1, 2]),  # one folder per class: the model's order
        (("cat", "dog", "elk"), None),  # which of the five classes these are, nobody knows
        (("0", "4", "2"), [0, 4, 2]),
        (("0", "7", "2"), None),
    ],
)
def test_folders_are_labels_only_where_their_class_is_known(
    names: tuple[str, ...], expected: list[int] | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Regression: ten folders were scored as the first ten of a model's thousand classes, 9.5 % right."""
    images = make_images(3).images
    checked = check_labels(ImageSet(images, torch.arange(3), "tree", names), 5)
    assert (checked.labels is None) == (expected is None)
    assert checked.labels is None or checked.labels.tolist() == expected
    assert ("accuracy is not measured" in caplog.text) == (expected is None)


def test_labels_beyond_the_models_classes(model: LoadedModel, data: ImageSet, tmp_path: Path) -> None:
    wrong = ImageSet(data.images, torch.full((len(data),), 7), "wrong")
    with pytest.raises(UsageError, match="labels up to 7"):
        harden(model, wrong, tmp_path / "out", HardenOptions(calibration_images=16))
