"""Loading a float model from every source, and one clear line for everything that is not one."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from quantinel.errors import InputError, QuantinelError, UnsupportedError, UsageError
from quantinel.model.loading import load_model
from quantinel.model.normalization import Normalized
from quantinel.model.victim import VictimManifest, write_manifest
from quantinel.model.zoo import ARCHITECTURES, build

ARCH = "vgg_small"
MEAN, STD = ARCHITECTURES[ARCH].mean, ARCHITECTURES[ARCH].std


class _Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return build(ARCH, num_classes=7)


@pytest.fixture
def state(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


@pytest.fixture
def checkpoint(state: dict[str, Tensor], tmp_path: Path) -> Path:
    return save(state, tmp_path / "model.safetensors")


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def save(state: dict[str, Tensor], path: Path) -> Path:
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return path


def normalized(network: nn.Module, images: Tensor) -> Tensor:
    mean, std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
    result: Tensor = network((images - mean) / std)
    return result


def refused(kind: type[QuantinelError], match: str, model: Any, **options: Any) -> str:
    """The message, which is one line and says what to do next."""
    with pytest.raises(kind, match=match) as caught:
        load_model(model, **options)
    assert type(caught.value) is kind
    message = str(caught.value)
    assert "\n" not in message
    assert ";" in message
    return message


# ---------------------------------------------------------------- what loads


def test_architecture_and_checkpoint(checkpoint: Path, network: nn.Module, images: Tensor) -> None:
    loaded = load_model(checkpoint, arch=ARCH)

    assert (loaded.num_classes, loaded.input_shape, loaded.architecture) == (7, (3, 32, 32), ARCH)
    assert (loaded.name, loaded.source, loaded.victim) == ("model", str(checkpoint), None)
    assert loaded.sha256 == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert not loaded.module.training
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(images), normalized(network, images), rtol=1e-5, atol=1e-5)


def test_given_normalisation_wins(checkpoint: Path, network: nn.Module, images: Tensor) -> None:
    loaded = load_model(str(checkpoint), arch=ARCH, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(images), network(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prefix", ["module.", "model.", "module.model."])
def test_uniform_prefix_is_stripped(prefix: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    path = save({prefix + name: tensor for name, tensor in state.items()}, tmp_path / "wrapped.safetensors")
    assert load_model(path, arch=ARCH).num_classes == 7


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_become_float32(
    dtype: torch.dtype, state: dict[str, Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    half = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    loaded = load_model(save(half, tmp_path / "half.safetensors"), arch=ARCH)
    assert {parameter.dtype for parameter in loaded.module.parameters()} == {torch.float32}
    assert ("converted to float32" in caplog.text) == (dtype != torch.float64)


def test_vision_transformer_and_grey_images(tmp_path: Path) -> None:
    path = save(build("vit_tiny", 4, 16, 1).state_dict(), tmp_path / "vit.safetensors")
    loaded = load_model(path, arch="vit_tiny", input_shape=(1, 16, 16))
    assert (loaded.num_classes, loaded.input_shape) == (4, (1, 16, 16))
    assert "--input-shape" in refused(InputError, "does not fit", path, arch="vit_tiny")


def test_factory(
    checkpoint: Path, network: nn.Module, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "quantinel_test_factory.py").write_text(
        "from quantinel.model.zoo import build\n"
        "def make(): return build('vgg_small', 7)\n"
        "def wrong(): return 3\n"
        "def fails(): raise RuntimeError('two\\nlines')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    loaded = load_model(checkpoint, factory="quantinel_test_factory:make", input_shape=(3, 32, 32))
    with torch.no_grad():  # no normalisation unless it is given
        torch.testing.assert_close(loaded.module(images), network(images), rtol=1e-5, atol=1e-5)
    assert loaded.architecture is None

    refused(UsageError, "input_shape", checkpoint, factory="quantinel_test_factory:make")
    for factory in ("quantinel_test_factory:wrong", "quantinel_test_factory:fails", "quantinel_test_factory:none"):
        refused(UsageError, "factory", checkpoint, factory=factory, input_shape=(3, 32, 32))
    for factory in ("no_such_module_here:make", "quantinel_test_factory", ":make", ".relative:make"):
        refused(UsageError, "factory", checkpoint, factory=factory, input_shape=(3, 32, 32))
    pickled = tmp_path / "state.pt"
    torch.save(network.state_dict(), pickled)
    refused(InputError, "pickle", pickled, factory="quantinel_test_factory:make", input_shape=(3, 32, 32))


def test_exported_program(network: nn.Module, images: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "my model.pt2"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(network, (images[:1],)), path)
    loaded = load_model(path)
    assert (loaded.num_classes, loaded.input_shape, loaded.name) == (7, (3, 32, 32), "my-model")
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(images), network(images), rtol=1e-5, atol=1e-5)
        normal = load_model(path, mean=MEAN, std=STD).module(images)
        torch.testing.assert_close(normal, normalized(network, images), rtol=1e-5, atol=1e-5)
    refused(InputError, "7 classes, not 10", path, num_classes=10)
    refused(InputError, "takes images of shape", path, input_shape=(3, 64, 64))
    refused(UsageError, "--arch", path, arch=ARCH)
    refused(UsageError, "--factory", path, factory="a:b")


def test_module_from_memory(network: nn.Module, images: Tensor) -> None:
    loaded = load_model(network, input_shape=(3, 32, 32), num_classes=7)
    assert (loaded.name, loaded.source, loaded.sha256) == ("VGG", "module:VGG", None)
    assert loaded.module is network
    refused(UsageError, "input_shape", network)
    refused(UsageError, "--arch", network, arch=ARCH, input_shape=(3, 32, 32))
    refused(InputError, "7 classes, not 3", network, input_shape=(3, 32, 32), num_classes=3)
    refused(InputError, "fails on an image", network, input_shape=(1, 32, 32))
    refused(UsageError, "of one image", network, input_shape=(3, 0, 32))


@pytest.fixture
def victim(state: dict[str, Tensor], tmp_path: Path) -> Path:
    folder = tmp_path / "victim"
    folder.mkdir()
    data = save(state, folder / "model.safetensors").read_bytes()
    manifest = VictimManifest(
        attack="pq_backdoor", architecture=ARCH, num_classes=7, input_shape=(3, 32, 32), mean=MEAN, std=STD, trigger={},
        target_class=0, schemes=[], data="none", seed=0, config={}, gate={},
        weights_sha256=hashlib.sha256(data).hexdigest(),
    )  # fmt: skip
    write_manifest(folder, manifest)
    return folder


def test_victim_directory(victim: Path, network: nn.Module, images: Tensor) -> None:
    loaded = load_model(victim)
    assert loaded.victim is not None
    assert (loaded.name, loaded.architecture, loaded.victim.attack) == ("victim", ARCH, "pq_backdoor")
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(images), normalized(network, images), rtol=1e-5, atol=1e-5)
    refused(UsageError, "--arch", victim, arch=ARCH)


def test_changed_victim_is_refused(victim: Path, state: dict[str, Tensor]) -> None:
    state["classifier.bias"][0] += 1
    save(state, victim / "model.safetensors")
    refused(InputError, "sha256", victim)
    (victim / "model.safetensors").unlink()
    refused(InputError, "does not exist", victim)
    (victim / "victim.json").write_text("{}")
    refused(InputError, "not a victim manifest", victim)


@pytest.mark.parametrize(
    "change",
    [
        {"input_shape": (-1, 32, 32)},
        {"input_shape": (3, 0, 32)},
        {"input_shape": (3, 1 << 40, 1 << 40), "architecture": "vit_tiny"},
        {"num_classes": 1 << 60},
        {"mean": (0.5,)},
        {"architecture": "evil"},
    ],
)
def test_impossible_victim_manifest(change: dict[str, Any], victim: Path) -> None:
    path = victim / "victim.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    refused(InputError, "make the victim again|classes|does not fit", victim)


# ---------------------------------------------------------------- what is refused


def test_hardened_directory_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    (tmp_path / "model.onnx").write_bytes(b"x")
    message = refused(UsageError, "already quantized", tmp_path)
    assert "quantinel verify" in message
    assert "quantinel evaluate" in message


def test_other_directory_is_refused(tmp_path: Path) -> None:
    refused(InputError, "not a victim directory", tmp_path)


@pytest.mark.parametrize(
    "suffix", [".pt", ".pth", ".bin", ".pkl", ".ckpt", ".safetensors", ".pt2", ".onnx", ".npz", ""]
)
@pytest.mark.parametrize("write", ["pickle", "torch", "torchscript"])
def test_pickles_are_refused_unopened_with_the_recipe(suffix: str, write: str, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    path = tmp_path / f"model{suffix}"
    if write == "pickle":
        path.write_bytes(pickle.dumps(_Payload(marker)))
    elif write == "torch":
        torch.save({"weight": _Payload(marker)}, path)
    else:
        buffer = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.save(torch.jit.script(nn.Linear(2, 2)), buffer)
        path.write_bytes(buffer.getvalue())
    message = refused(InputError, "pickle", path, arch=None if suffix == ".pt2" else ARCH)
    assert "safetensors.torch.save_file(model.state_dict(), 'model.safetensors')" in message
    assert "torch.export.save" in message
    assert not marker.exists()


@pytest.mark.parametrize("length", [0x280, 0x380, 0x480, 0x580])
def test_a_header_whose_length_looks_like_a_pickle_is_none(length: int, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    bare = safetensors.torch.save({"one.weight": torch.zeros(4)}, {"note": ""})
    note = "x" * (length - int.from_bytes(bare[:8], "little"))
    path.write_bytes(safetensors.torch.save({"one.weight": torch.zeros(4)}, {"note": note}))
    assert path.read_bytes()[:2] == bytes([0x80, length >> 8])
    refused(InputError, "does not fit", path, arch=ARCH)


def test_numpy_archive_with_objects_is_refused(tmp_path: Path) -> None:
    marker, path = tmp_path / "executed", tmp_path / "weights.npz"
    np.savez(path, weight=np.array([_Payload(marker)], dtype=object))
    refused(InputError, "pickle", path, arch=ARCH)
    assert not marker.exists()


def test_onnx_is_not_a_float_model_yet(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x08\x07")
    refused(UnsupportedError, ".pt2", tmp_path / "model.onnx")


def test_weights_need_one_architecture(checkpoint: Path) -> None:
    refused(UsageError, "--arch NAME or --factory", checkpoint)
    refused(UsageError, "one of them", checkpoint, arch=ARCH, factory="a:b")
    refused(UsageError, "unknown architecture", checkpoint, arch="resnet9000")
    refused(UsageError, "mean and std go together", checkpoint, arch=ARCH, mean=MEAN)
    refused(UsageError, "3 channels", checkpoint, arch=ARCH, mean=(0.5,), std=(0.5,))
    refused(UsageError, "positive", checkpoint, arch=ARCH, mean=MEAN, std=(1.0, 1.0, 0.0))
    refused(UsageError, "finite", checkpoint, arch=ARCH, mean=MEAN, std=(1.0, 1.0, float("nan")))


def test_wrong_class_count(checkpoint: Path) -> None:
    refused(InputError, "7 classes, not 10", checkpoint, arch=ARCH, num_classes=10)
    assert load_model(checkpoint, arch=ARCH, num_classes=7).num_classes == 7


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda state: state.pop("features.0.weight"), "1 names missing .first: 'features.0.weight'."),
        (lambda state: state.update({"ema\x1b[2J\n": torch.zeros(1)}), "1 names unexpected"),
        (lambda state: state.update({"features.0.weight": torch.zeros(3, 3, 3, 3)}), r"is \(3, 3, 3, 3\) in the file"),
        (lambda state: state["features.0.weight"].fill_(float("nan")), "'features.0.weight' holds NaN"),
        (
            lambda state: state["features.1.running_var"].fill_(float("inf")),
            "'features.1.running_var' holds NaN or inf",
        ),
        (lambda state: state.update({"features.0.weight": torch.zeros(32, 3, 3, 3, dtype=torch.int8)}), "quantized"),
        (lambda state: state["features.1.running_var"].fill_(-1), "not finite"),
        (lambda state: state.clear(), "no tensors"),
    ],
)
def test_checkpoint_that_does_not_fit(
    change: Callable[[dict[str, Tensor]], object], match: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    change(state)
    message = refused(InputError, match, save(state, tmp_path / "model.safetensors"), arch=ARCH)
    assert message.isprintable()


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 3)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x.flatten(1))))


def test_one_name_of_a_tied_weight_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = Tied().eval()
    path = tmp_path / "tied.safetensors"
    safetensors.torch.save_model(module, path)
    monkeypatch.setitem(sys.modules, "tied_network", types.SimpleNamespace(make=Tied))
    loaded = load_model(path, factory="tied_network:make", input_shape=(3, 2, 2))
    images = torch.rand(4, 3, 2, 2)
    assert torch.equal(loaded.module(images), module(images))
    state = safetensors.torch.load_file(path)
    state.pop("second.bias")
    with pytest.raises(InputError, match=r"1 names missing .first: 'second\.bias'"):
        load_model(save(state, path), factory="tied_network:make", input_shape=(3, 2, 2))


def test_step_counters_may_be_missing(state: dict[str, Tensor], tmp_path: Path) -> None:
    kept = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    assert load_model(save(kept, tmp_path / "model.safetensors"), arch=ARCH).num_classes == 7


def test_module_without_data(tmp_path: Path) -> None:
    with torch.device("meta"):
        module = build(ARCH)
    refused(InputError, "has no data", module, input_shape=(3, 32, 32))


def test_single_output_is_not_a_classifier(state: dict[str, Tensor], tmp_path: Path) -> None:
    state["classifier.weight"], state["classifier.bias"] = state["classifier.weight"][:1], state["classifier.bias"][:1]
    refused(InputError, "at least 2 classes", save(state, tmp_path / "model.safetensors"), arch=ARCH)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:4],
        lambda data: data[:100],
        lambda data: data[:-10],
        lambda data: b"\xff" * 8 + data[8:],
        lambda data: bytes(len(data)),
        lambda data: (50).to_bytes(8, "little") + b'{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}'.ljust(50),
        lambda data: (2).to_bytes(8, "little") + b"{}",
    ],
)
def test_damaged_safetensors(damage: Callable[[bytes], bytes], checkpoint: Path) -> None:
    checkpoint.write_bytes(damage(checkpoint.read_bytes()))
    refused(InputError, "empty|not a valid safetensors|no tensors", checkpoint, arch=ARCH)


def test_missing_and_strange_files(tmp_path: Path) -> None:
    for name in ("missing.safetensors", "missing.pt2", "missing.pt", "missing", "bad\0name"):
        refused(InputError, "does not exist|cannot be read", tmp_path / name)
    (tmp_path / "notes.txt").write_text("hello")
    refused(InputError, "no known kind", tmp_path / "notes.txt")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX")
def test_pipes_and_devices_do_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt2")
    refused(InputError, "not a regular file", tmp_path / "pipe.pt2")
    (tmp_path / "zero.safetensors").symlink_to("/dev/zero")
    refused(InputError, "not a regular file", tmp_path / "zero.safetensors", arch=ARCH)


def test_unreadable_file(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(*arguments: object) -> int:  # as root, a file without permissions can be read
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", deny)
    refused(InputError, "Permission denied", checkpoint, arch=ARCH)


class _Returns(nn.Module):
    def __init__(self, result: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.result = result

    def forward(self, x: Tensor) -> Any:
        return self.result(x)


@pytest.mark.parametrize(
    ("result", "match"),
    [
        (lambda x: (x.flatten(1),), "returns a tuple"),
        (lambda x: x, r"returns shape \(1, 3, 4, 4\)"),
        (lambda x: x.mean((2, 3))[:, :1], r"returns shape \(1, 1\)"),
        (lambda x: x.mean((2, 3))[0], r"returns shape \(3,\)"),
        (lambda x: x.mean((2, 3)) / 0, "not finite"),
        (lambda x: x.flatten(1).long(), "not finite"),
        (lambda x: x @ x.new_zeros(7, 7), "fails on an image of shape"),
        (lambda x: 1 // 0, "ZeroDivisionError"),
    ],
)
def test_module_that_is_not_a_classifier(result: Callable[[Tensor], Any], match: str) -> None:
    refused(InputError, match, _Returns(result), input_shape=(3, 4, 4))


def test_half_module_is_refused() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)).half()
    refused(InputError, r"model\.float\(\)", module, input_shape=(3, 4, 4))


# ---------------------------------------------------------------- libraries


def test_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("timm", "torchvision"):
        monkeypatch.setitem(sys.modules, name, None)
        refused(UsageError, f"pip install {name}", f"{name}:resnet18")
        refused(UsageError, "--arch", f"{name}:resnet18", arch=ARCH)


def test_timm(network: nn.Module, monkeypatch: pytest.MonkeyPatch, images: Tensor) -> None:
    timm = types.ModuleType("timm")

    def create_model(name: str, pretrained: bool) -> nn.Module:
        if name == "offline":
            raise OSError("no\nnetwork")
        assert pretrained
        network.pretrained_cfg = {"input_size": (3, 32, 32), "mean": MEAN, "std": STD}  # type: ignore[assignment]
        return network

    timm.create_model = create_model  # type: ignore[attr-defined]
    timm.is_model = lambda name: name in ("vgg", "offline")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", timm)
    loaded = load_model("timm:vgg.cifar10")
    assert (loaded.name, loaded.source, loaded.sha256) == ("vgg.cifar10", "timm:vgg.cifar10", None)
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(images), normalized(network, images), rtol=1e-5, atol=1e-5)
    refused(InputError, "cannot be fetched", "timm:offline")
    refused(UsageError, "no model", "timm:unknown")
    refused(UsageError, "no model", "timm:hf-hub:someone/something")


def test_torchvision(network: nn.Module, monkeypatch: pytest.MonkeyPatch, images: Tensor) -> None:
    class Weights:
        def get_state_dict(self, check_hash: bool, weights_only: bool) -> dict[str, Tensor]:
            assert check_hash
            assert weights_only, "downloads are pickles"
            return dict(network.state_dict())

        def transforms(self) -> Any:
            return types.SimpleNamespace(crop_size=[32], mean=list(MEAN), std=list(STD))

    models = types.SimpleNamespace(
        list_models=lambda module: ["vgg", "googlenet", "offline"],
        get_model_weights=lambda name: {"vgg": types.SimpleNamespace(DEFAULT=Weights())}[name],
        get_model=lambda name, weights: build(ARCH, 7),
    )
    torchvision = types.ModuleType("torchvision")
    torchvision.models = models  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", torchvision)
    loaded = load_model("torchvision:vgg")
    assert (loaded.input_shape, loaded.num_classes) == ((3, 32, 32), 7)
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(images), normalized(network, images), rtol=1e-5, atol=1e-5)
    refused(UnsupportedError, "export it as", "torchvision:googlenet")
    refused(InputError, "cannot be fetched", "torchvision:offline")
    refused(UsageError, "no classifier", "torchvision:unknown")


# ---------------------------------------------------------------- normalisation


def test_normalized_keeps_its_numbers_with_the_module() -> None:
    module = Normalized(nn.Identity(), (0.5, 0.25), (2.0, 4.0))
    result = module(torch.ones(1, 2, 1, 1))
    torch.testing.assert_close(result.flatten(), torch.tensor([0.25, 0.1875]))
    assert json.dumps(sorted(module.state_dict())) == '["mean", "std"]'
    with pytest.raises(UsageError):
        Normalized(nn.Identity(), (0.5,), (1.0, 1.0))
    with pytest.raises(UsageError):
        Normalized(nn.Identity(), (), ())
