"""Every bad input of the contract: one line that says what to do, the right exit code, nothing half-written."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save, save_file
from tests.cli.tiny_cli import FACTORY, Run, Tiny, quadrant_images
from tests.cli.tiny_networks import Quadrants

from quantinel.errors import EXIT_ERROR, EXIT_PASS, EXIT_UNSUPPORTED, EXIT_USAGE
from quantinel.files import atomic_directory


@pytest.fixture
def refused(run: Run, empty: Path) -> Callable[..., str]:
    """Run a command that must fail: exit code, one line, nothing written, no temporary folder anywhere."""

    def call(code: int, *command: object) -> str:
        before = {path.name for path in empty.iterdir()}
        done = run(*command)
        assert done.code == code, done.err
        assert done.out == ""
        assert {path.name for path in empty.iterdir()} == before
        message = done.error.removeprefix("quantinel: error: ")
        assert 40 < len(message) < 700
        assert "Traceback" not in message
        return message

    return call


Refused = Callable[..., str]


# Missing


def test_missing_model(refused: Refused, tiny: Tiny, empty: Path) -> None:
    for name in ("none.safetensors", "none.pt2", "none", "none.onnx"):
        options = tiny.harden(empty / "out", model=empty / name)
        if not name.endswith("safetensors"):
            options = [part for part in options if part not in ("--factory", FACTORY)]
        assert "none" in refused(EXIT_ERROR, *options)


def test_missing_data_trigger_and_folders(refused: Refused, tiny: Tiny, empty: Path) -> None:
    assert "none.npz" in refused(EXIT_ERROR, *tiny.harden(empty / "out", data=empty / "none.npz"))
    trigger = ["--trigger", empty / "none.json", "--target", "0"]
    assert "none.json" in refused(EXIT_ERROR, *tiny.harden(empty / "out"), *trigger)
    assert "none" in refused(EXIT_ERROR, "verify", empty / "none", "--quiet")
    assert "none" in refused(EXIT_ERROR, "verify", empty / "none", "--data", tiny.images, "--quiet")
    assert "none" in refused(EXIT_ERROR, "evaluate", empty / "none", "--data", tiny.images, "--quiet")
    assert "none" in refused(EXIT_ERROR, "report", empty / "none.json")


# Truncated and corrupt


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("exported") / "model.pt2"
    program = torch.export.export(Quadrants().eval(), (torch.rand(2, 3, 8, 8),))
    torch.export.save(program, path)
    return path.read_bytes()


def harden_pt2(tiny: Tiny, path: Path, output: Path) -> list[str]:
    return [part for part in tiny.harden(output, model=path) if part not in ("--factory", FACTORY)]


def test_the_whole_pt2_is_accepted(run: Run, tiny: Tiny, exported: bytes, empty: Path, tmp_path: Path) -> None:
    (tmp_path / "model.pt2").write_bytes(exported)
    assert run(*harden_pt2(tiny, tmp_path / "model.pt2", empty / "out")).code == EXIT_PASS


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.999])
def test_truncated_pt2(
    refused: Refused, tiny: Tiny, exported: bytes, empty: Path, tmp_path: Path, share: float
) -> None:
    (tmp_path / "model.pt2").write_bytes(exported[: int(share * len(exported))])
    assert "model.pt2" in refused(EXIT_ERROR, *harden_pt2(tiny, tmp_path / "model.pt2", empty / "out"))


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6, 0.95])
def test_corrupt_pt2(refused: Refused, tiny: Tiny, exported: bytes, empty: Path, tmp_path: Path, share: float) -> None:
    data = bytearray(exported)
    start = int(share * len(data))
    data[start : start + 200] = b"\xff" * 200
    (tmp_path / "model.pt2").write_bytes(data)
    assert "model.pt2" in refused(EXIT_ERROR, *harden_pt2(tiny, tmp_path / "model.pt2", empty / "out"))


@pytest.mark.parametrize("damage", ["empty", "half", "header", "length", "text"])
def test_damaged_safetensors(refused: Refused, tiny: Tiny, empty: Path, tmp_path: Path, damage: str) -> None:
    data = tiny.weights.read_bytes()
    damaged = {
        "empty": b"",
        "half": data[: len(data) // 2],
        "header": data[:8] + b"x" * 40 + data[48:],
        "length": b"\xff" * 8 + data[8:],
        "text": b"not a model\n" * 10,
    }[damage]
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(damaged)
    assert "damaged.safetensors" in refused(EXIT_ERROR, *tiny.harden(empty / "out", model=path))


@pytest.mark.parametrize("damage", ["empty", "half", "middle", "text"])
def test_damaged_npz(refused: Refused, tiny: Tiny, empty: Path, tmp_path: Path, damage: str) -> None:
    data = tiny.images.read_bytes()
    middle = len(data) // 3
    damaged = {
        "empty": b"",
        "half": data[: len(data) // 2],
        "middle": data[:middle] + b"\xff" * 300 + data[middle + 300 :],
        "text": b"not an archive\n" * 10,
    }[damage]
    path = tmp_path / "damaged.npz"
    path.write_bytes(damaged)
    assert "damaged.npz" in refused(EXIT_ERROR, *tiny.harden(empty / "out", data=path))


@pytest.mark.parametrize("name", ["model.onnx", "quantized.safetensors", "manifest.json", "probe.safetensors"])
def test_damaged_hardened_folder(refused: Refused, hardened: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(hardened, tmp_path / "damaged")
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])
    refused(EXIT_ERROR, "verify", folder, "--quiet")


# Pickles


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("name", ["model.pt", "model.pth", "model.pkl", "model.safetensors", "model.pt2", "model.bin"])
@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_pickles_are_refused_and_not_opened(
    refused: Refused, tiny: Tiny, empty: Path, tmp_path: Path, name: str, form: str
) -> None:
    exploded = tmp_path / "exploded"
    path = tmp_path / name
    if form == "pickle":
        path.write_bytes(pickle.dumps(Bomb(exploded)))
    else:
        torch.save(Bomb(exploded), path)
    message = refused(EXIT_ERROR, *tiny.harden(empty / "out", model=path))
    assert "pickle" in message
    assert "safetensors" in message
    assert not exploded.exists()


def test_pickled_arrays_are_refused_and_not_opened(refused: Refused, tiny: Tiny, empty: Path, tmp_path: Path) -> None:
    exploded = tmp_path / "exploded"
    np.savez(tmp_path / "bomb.npz", images=np.array([Bomb(exploded)], dtype=object))
    refused(EXIT_ERROR, *tiny.harden(empty / "out", data=tmp_path / "bomb.npz"))
    assert not exploded.exists()


# Models that do not fit


def test_wrong_class_count(refused: Refused, tiny: Tiny, empty: Path, tmp_path: Path) -> None:
    assert "4 classes" in refused(EXIT_ERROR, *tiny.harden(empty / "out"), "--num-classes", "10")
    images, labels = quadrant_images(64)
    np.savez(tmp_path / "more.npz", images=images, labels=labels + 1)
    assert "4 classes" in refused(EXIT_USAGE, *tiny.harden(empty / "out", data=tmp_path / "more.npz"))
    trigger = ["--trigger", tiny.trigger, "--target", "4"]
    assert "4 classes" in refused(EXIT_USAGE, *tiny.harden(empty / "out"), *trigger)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["conv.weight", "linear.bias"])
def test_weights_that_are_not_finite(
    refused: Refused, tiny: Tiny, empty: Path, tmp_path: Path, name: str, value: float
) -> None:
    state = load_file(tiny.weights)
    state[name].flatten()[1] = value
    save_file(state, tmp_path / "model.safetensors")
    message = refused(EXIT_ERROR, *tiny.harden(empty / "out", model=tmp_path / "model.safetensors"))
    assert name in message


def test_an_all_zero_channel_is_no_error(run: Run, tiny: Tiny, empty: Path, tmp_path: Path) -> None:
    state = load_file(tiny.weights)
    state["conv.weight"][2] = 0.0
    state["conv.bias"][2] = 0.0
    save_file(state, tmp_path / "model.safetensors")
    done = run(*tiny.harden(empty / "out", model=tmp_path / "model.safetensors"))
    assert (done.code, done.err) == (EXIT_PASS, "")
    assert run("verify", empty / "out", "--quiet").code == EXIT_PASS


def test_another_architecture(refused: Refused, tiny: Tiny, empty: Path) -> None:
    command = ["harden", tiny.weights, "--arch", "resnet20", "--data", tiny.images, "-o", empty / "out", "--quiet"]
    assert "does not fit resnet20" in refused(EXIT_ERROR, *command)


def test_an_unsupported_operator(refused: Refused, tiny: Tiny, empty: Path) -> None:
    def factory(name: str) -> list[str]:
        return [part.replace("quadrants", name) for part in tiny.harden(empty / "out")]

    assert "sort" in refused(EXIT_UNSUPPORTED, *factory("sorted_pixels"))


def test_a_model_without_layers(refused: Refused, tiny: Tiny, empty: Path, tmp_path: Path) -> None:
    program = torch.export.export(torch.nn.AdaptiveAvgPool2d(1).eval(), (torch.rand(2, 3, 8, 8),))
    torch.export.save(program, tmp_path / "pool.pt2")
    refused(EXIT_ERROR, *harden_pt2(tiny, tmp_path / "pool.pt2", empty / "out"))  # (N, 3, 1, 1) are no logits
    program = torch.export.export(
        torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()).eval(), (torch.rand(2, 3, 8, 8),)
    )
    torch.export.save(program, tmp_path / "flat.pt2")
    refused(EXIT_UNSUPPORTED, *harden_pt2(tiny, tmp_path / "flat.pt2", empty / "out"))


# Images that do not fit


@pytest.mark.parametrize("shape", [(64, 9, 8, 3), (64, 32, 32, 3), (64, 8, 8, 4), (64, 8, 8), (0, 8, 8, 3)], ids=str)
def test_images_of_the_wrong_shape(
    refused: Refused, tiny: Tiny, empty: Path, tmp_path: Path, shape: tuple[int, ...]
) -> None:
    np.savez(tmp_path / "images.npz", images=np.zeros(shape, np.uint8))
    assert "images.npz" in refused(EXIT_ERROR, *tiny.harden(empty / "out", data=tmp_path / "images.npz"))


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "bool", "complex64", "U3"])
def test_images_of_the_wrong_dtype(refused: Refused, tiny: Tiny, empty: Path, tmp_path: Path, dtype: str) -> None:
    images, labels = quadrant_images(64)
    np.savez(tmp_path / "images.npz", images=images.astype(dtype), labels=labels)
    assert "images.npz" in refused(EXIT_ERROR, *tiny.harden(empty / "out", data=tmp_path / "images.npz"))


@pytest.mark.parametrize("count", ["0", "1", "-3"])
def test_too_few_calibration_images(refused: Refused, tiny: Tiny, empty: Path, count: str) -> None:
    command = tiny.harden(empty / "out")
    command[command.index("--calibration-images") + 1] = count
    assert "at least 2" in refused(EXIT_USAGE, *command)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_too_few_images(refused: Refused, tiny: Tiny, empty: Path, tmp_path: Path, count: int) -> None:
    images, labels = quadrant_images(count)
    np.savez(tmp_path / "few.npz", images=images.reshape(count, 8, 8, 3), labels=labels)
    refused(EXIT_ERROR, *tiny.harden(empty / "out", data=tmp_path / "few.npz"))


def test_one_separate_calibration_image(refused: Refused, tiny: Tiny, empty: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", images=quadrant_images(1)[0])
    refused(EXIT_USAGE, *tiny.harden(empty / "out"), "--calibration", tmp_path / "one.npz")
    message = refused(EXIT_USAGE, *tiny.harden(empty / "out"), "--calibration", tiny.images)
    assert "the same images" in message


# Outputs that cannot be written


def test_an_output_that_exists(refused: Refused, run: Run, tiny: Tiny, empty: Path) -> None:
    (empty / "out").mkdir()
    (empty / "out" / "mine.txt").write_text("mine", "utf-8")
    (empty / "file").write_text("mine", "utf-8")
    assert "--force" in refused(EXIT_USAGE, *tiny.harden(empty / "out"))
    assert "did not write" in refused(EXIT_USAGE, *tiny.harden(empty / "out"), "--force")
    refused(EXIT_USAGE, *tiny.harden(empty / "file"))
    refused(EXIT_USAGE, *tiny.harden(empty / "file"), "--force")
    refused(EXIT_ERROR, *tiny.harden(empty / "file" / "out"))
    assert (empty / "out" / "mine.txt").read_text("utf-8") == "mine"
    (empty / "out" / "mine.txt").unlink()
    assert run(*tiny.harden(empty / "out"), "--force").code == EXIT_PASS
    assert {path.name for path in empty.iterdir()} == {"out", "file"}


@pytest.mark.parametrize(
    "content",
    [
        "{}",
        "[1]",
        '{"name": "my web app", "outputs": {"data.txt": ""}}',
        '{"format": "quantinel-manifest-1"}',
        "[" * 9999,
    ],
)
@pytest.mark.parametrize("name", ["manifest.json", "victim.json"])
def test_force_spares_a_folder_with_a_manifest_of_something_else(
    refused: Refused, tiny: Tiny, empty: Path, name: str, content: str
) -> None:
    folder = empty / "out"
    folder.mkdir()
    (folder / name).write_text(content, "utf-8")
    (folder / "data.txt").write_text("mine", "utf-8")
    message = refused(EXIT_USAGE, *tiny.harden(folder), "--force")
    assert "did not write ('data.txt'" in message
    assert (folder / "data.txt").read_text("utf-8") == "mine"


def test_force_spares_what_was_added_to_an_earlier_output(
    refused: Refused, run: Run, tiny: Tiny, hardened: Path, empty: Path
) -> None:
    folder = empty / "out"
    shutil.copytree(hardened, folder)
    (folder / "notes").mkdir()
    for index in range(5):
        (folder / "notes" / f"{index}.txt").write_text("mine", "utf-8")
    message = refused(EXIT_USAGE, *tiny.harden(folder), "--force")
    assert "('notes/0.txt', 'notes/1.txt', 'notes/2.txt' and 2 more)" in message
    assert (folder / "notes" / "4.txt").read_text("utf-8") == "mine"
    shutil.rmtree(folder / "notes")
    assert run(*tiny.harden(folder), "--force").code == EXIT_PASS


@pytest.mark.parametrize("after", range(6))
def test_a_full_disk(refused: Refused, tiny: Tiny, empty: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """The disk is full when the n-th file of the folder is written."""
    writes = iter(range(100))

    def limited(write: Callable[..., int]) -> Callable[..., int]:
        def call(self: Path, *arguments: object, **options: object) -> int:
            if empty in self.parents and next(writes) >= after:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
            return write(self, *arguments, **options)

        return call

    monkeypatch.setattr(Path, "write_bytes", limited(Path.write_bytes))
    monkeypatch.setattr(Path, "write_text", limited(Path.write_text))
    message = refused(EXIT_ERROR, *tiny.harden(empty / "out"))
    assert "disk is full" in message
    assert "free some space" in message


def test_a_full_disk_keeps_the_previous_output(
    refused: Refused, run: Run, tiny: Tiny, empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(*tiny.harden(empty / "out")).code == EXIT_PASS
    before = (empty / "out" / "manifest.json").read_bytes()

    def full(self: Path, *_arguments: object, **_options: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    assert "disk is full" in refused(EXIT_ERROR, *tiny.harden(empty / "out"), "--force")
    assert (empty / "out" / "manifest.json").read_bytes() == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB; only the superuser of a machine that allows it can make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True
        ).returncode
    )
    if not mounted:
        pytest.skip("cannot mount a small file system here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
def test_a_disk_that_is_really_full(run: Run, tiny: Tiny, small_disk: Path) -> None:
    done = run(*tiny.harden(small_disk / "out"))
    assert done.code == EXIT_ERROR
    assert "disk is full" in done.error
    assert not list(small_disk.iterdir())


# Interruptions


def test_an_interruption_removes_what_was_begun(empty: Path) -> None:
    def interrupted() -> None:
        with atomic_directory(empty / "out") as folder:
            (folder / "half.txt").write_text("half", "utf-8")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(empty.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("moment", ["choosing", "writing"])
def test_signals_leave_nothing(
    tiny: Tiny, empty: Path, tmp_path: Path, number: signal.Signals, code: int, moment: str
) -> None:
    from tests.cli.tiny_networks import wide

    (tmp_path / "wide.safetensors").write_bytes(save(wide().state_dict()))
    images = np.random.default_rng(0).integers(0, 256, (4000, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "images.npz", images=images)
    command = [
        sys.executable, "-m", "quantinel", "harden", tmp_path / "wide.safetensors", "--factory",
        "tests.cli.tiny_networks:wide",
        "--input-shape", "3,32,32", "--data", tmp_path / "images.npz", "--calibration-images", "16", "-o",
        empty / "out",
    ]  # fmt: skip
    if moment == "choosing":
        command += ["--rounding", "efrap-released", "--set", "iterations=10000000"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    if moment == "choosing":
        lines = iter(process.stderr.readline, "")
        assert any("calibrating" in line for line in lines)
        time.sleep(1.0)
    else:
        deadline = time.monotonic() + 120
        while not list(empty.glob(".out.partial-*/model.onnx")):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.02)
    process.send_signal(number)
    out, error = process.communicate(timeout=60)
    assert process.returncode == code
    assert out == ""
    assert error.splitlines()[-1] == f"quantinel: stopped by {number.name}; no unfinished output was left"
    assert "Traceback" not in error
    assert not list(empty.iterdir())
