from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from quantinel.data import bundled
from quantinel.data.cifar10 import CLASSES, load_cifar10
from quantinel.data.images import ImageSet
from quantinel.data.sources import DATA_SOURCES, load_images
from quantinel.data.strips import write_strips
from quantinel.errors import InputError, QuantinelError, UsageError

SHARED = os.environ.get("QUANTINEL_SHARED", "")
needs_shared = pytest.mark.skipif(not SHARED, reason="QUANTINEL_SHARED names no folder")


def png(path: Path, value: int = 7, size: tuple[int, int] = (6, 6)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)
    return path


def tree(folder: Path, classes: int = 3, each: int = 4) -> Path:
    """Class c holds pictures of brightness 10 c, 10 c + 1, ..."""
    for c in range(classes):
        for i in range(each):
            png(folder / f"class_{c}" / f"{i}.png", 10 * c + i)
    return folder


def brightness(images: ImageSet) -> list[int]:
    return [int(image[0, 0, 0]) for image in images.images]


def labels(images: ImageSet) -> list[int]:
    assert images.labels is not None
    return [int(label) for label in images.labels]


def small_set(count: int = 20, side: int = 32) -> ImageSet:
    pixels = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, side, side)
    return ImageSet(pixels.contiguous(), torch.arange(count) % 10, "test")


# Folders


def test_labels_are_indices_of_sorted_folder_names(tmp_path: Path) -> None:
    read = load_images(tree(tmp_path))
    assert labels(read) == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    assert brightness(read) == [0, 1, 2, 3, 10, 11, 12, 13, 20, 21, 22, 23]
    assert read.class_names == ("class_0", "class_1", "class_2")
    assert read.name == str(tmp_path)
    assert load_images(str(tmp_path)).sha256() == read.sha256()


def test_flat_folder_has_no_labels(tmp_path: Path) -> None:
    png(tmp_path / "b.PNG", 2)
    png(tmp_path / "a.jpeg", 1)
    read = load_images(tmp_path)
    assert read.labels is None
    assert brightness(read) == [1, 2]


def test_what_is_no_picture_is_ignored(tmp_path: Path) -> None:
    tree(tmp_path, classes=2, each=1)
    (tmp_path / "DATASHEET.md").write_text("text")
    (tmp_path / "SHA256SUMS").write_text("text")
    (tmp_path / "class_0" / "notes.txt").write_text("text")
    (tmp_path / "class_0" / "._0.png").write_bytes(b"not a picture")
    (tmp_path / "__MACOSX").mkdir()
    png(tmp_path / ".cache" / "0.png")
    os.mkfifo(tmp_path / "class_0" / "pipe")
    read = load_images(tmp_path)
    assert (len(read), read.class_names) == (2, ("class_0", "class_1"))


def test_a_class_without_pictures_keeps_its_index(tmp_path: Path) -> None:
    tree(tmp_path, classes=3, each=1)
    (tmp_path / "class_1" / "0.png").unlink()
    assert labels(load_images(tmp_path)) == [0, 2]


def test_nested_folders_and_links(tmp_path: Path) -> None:
    tree(tmp_path / "data", classes=2, each=1)
    png(tmp_path / "elsewhere" / "deep" / "x.png", 99)
    (tmp_path / "data" / "class_0" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "class_1" / "link.png").symlink_to(tmp_path / "elsewhere" / "deep" / "x.png")
    read = load_images(tmp_path / "data")
    assert brightness(read) == [0, 99, 10, 99]
    assert labels(read) == [0, 0, 1, 1]


def test_pictures_are_resized_and_cropped(tmp_path: Path) -> None:
    png(tmp_path / "a.png", 50, (40, 20))
    png(tmp_path / "b.png", 60, (9, 9))
    read = load_images(tmp_path, input_shape=(3, 12, 12))
    assert (read.shape, brightness(read)) == ((3, 12, 12), [50, 60])
    assert load_images(tmp_path, input_shape=(1, 5, 8)).shape == (1, 5, 8)
    with pytest.raises(InputError, match=r"b\.png is 9x9 pixels, the pictures before it 40x20"):
        load_images(tmp_path)


def test_limit_is_balanced_seeded_and_before_decoding(tmp_path: Path) -> None:
    tree(tmp_path, classes=3, each=6)
    some = load_images(tmp_path, limit=6, seed=3)
    assert labels(some) == [0, 0, 1, 1, 2, 2]
    assert load_images(tmp_path, limit=6, seed=3).sha256() == some.sha256()
    assert load_images(tmp_path, limit=6, seed=4).sha256() != some.sha256()
    for c in range(3):
        for i in range(6):
            if 10 * c + i not in brightness(some):
                (tmp_path / f"class_{c}" / f"{i}.png").write_bytes(b"broken")
    assert load_images(tmp_path, limit=6, seed=3).sha256() == some.sha256()


def test_progress_and_silence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[tuple[int, int]] = []
    state = torch.get_rng_state()
    load_images(tree(tmp_path), limit=5, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(i, 5) for i in range(1, 6)]
    assert torch.equal(state, torch.get_rng_state())
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("content", [b"", b"text", "cut"], ids=["empty", "text", "cut off"])
def test_unreadable_pictures_are_named_on_one_line(tmp_path: Path, content: bytes | str) -> None:
    tree(tmp_path)
    path = png(tmp_path / "class_1" / "bad\nname.png")
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    path.write_bytes(buffer.getvalue()[:900] if isinstance(content, str) else content)
    with pytest.raises(InputError, match=r"bad name\.png is not a readable picture") as caught:
        load_images(tmp_path, input_shape=(3, 8, 8))
    assert "\n" not in str(caught.value)


def test_pipes_and_broken_links_are_refused(tmp_path: Path) -> None:
    tree(tmp_path / "a")
    os.mkfifo(tmp_path / "a" / "class_0" / "x.png")
    with pytest.raises(InputError, match=r"x\.png is a FIFO"):
        load_images(tmp_path / "a")
    tree(tmp_path / "b")
    (tmp_path / "b" / "class_0" / "x.png").symlink_to(tmp_path / "missing")
    with pytest.raises(InputError, match=r"x\.png cannot be read"):
        load_images(tmp_path / "b")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ((), "holds no pictures; expected one folder per class"),
        (("a/notes.txt", "README.md"), "holds no pictures; expected one folder per class"),
        (("x.png", "a/x.png"), "pictures beside folders of pictures"),
        (("a/x.png", "a/y.png"), "in one folder only"),
        (("images/a/x.png", "images/b/x.png"), "in one folder only"),
        (("train/a/x.png", "test/a/x.png"), "holds splits, not classes"),
    ],
    ids=["empty", "no pictures", "mixed", "one class", "wrapped", "splits"],
)
def test_folders_of_another_layout(tmp_path: Path, files: tuple[str, ...], message: str) -> None:
    for name in files:
        if name.endswith(".png"):
            png(tmp_path / name)
        else:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text("text")
    with pytest.raises(QuantinelError, match=message):
        load_images(tmp_path)


# Arrays


def test_npz_is_never_resized(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 4, 6, 3), np.uint8))
    assert load_images(tmp_path / "a.npz", input_shape=(3, 4, 6)).labels is None
    with pytest.raises(InputError, match="6x4 pixels, the model takes 32x32"):
        load_images(tmp_path / "a.npz", input_shape=(3, 32, 32))


def test_npz_channels_follow_the_model(tmp_path: Path) -> None:
    np.savez(tmp_path / "grey.npz", images=np.full((2, 4, 4, 1), 9, np.uint8))
    np.savez(tmp_path / "rgb.npz", images=np.full((2, 4, 4, 3), (255, 0, 0), np.uint8))
    assert load_images(tmp_path / "grey.npz").shape == (1, 4, 4)
    assert load_images(tmp_path / "grey.npz", input_shape=(3, 4, 4)).images.unique().tolist() == [9]
    assert load_images(tmp_path / "grey.npz", input_shape=(3, 4, 4)).shape == (3, 4, 4)
    assert load_images(tmp_path / "rgb.npz", input_shape=(1, 4, 4)).images.unique().tolist() == [76]


def test_npz_limit_and_progress(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    np.savez(tmp_path / "a.npz", images=np.zeros((40, 2, 2, 3), np.uint8), labels=np.arange(40) % 4)
    read = load_images(tmp_path / "a.npz", limit=8, progress=lambda *call: calls.append(call))
    assert sorted(labels(read)) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert calls == [(8, 8)]


def test_npz_of_strips(tmp_path: Path) -> None:
    write_strips(tmp_path / "a.npz", small_set())
    read = load_images(tmp_path / "a.npz", limit=10)
    assert labels(read) == [value % 10 for value in brightness(read)]
    with pytest.raises(InputError, match="32x32 pixels, the model takes 64x64"):
        load_images(tmp_path / "a.npz", input_shape=(3, 64, 64))


def test_cifar10_from_strips(tmp_path: Path) -> None:
    write_strips(tmp_path / "test_batch.npz", small_set())
    for i in range(1, 6):
        write_strips(tmp_path / f"data_batch_{i}.npz", small_set(10))
    test = load_images(f"cifar10:{tmp_path}", input_shape=(3, 32, 32))
    assert (test.name, test.class_names, len(test)) == ("cifar10:test", CLASSES, 20)
    assert len(load_images(f"cifar10:{tmp_path}", split="train")) == 50
    assert len(load_cifar10(tmp_path, "train", batches=2)) == 20
    with pytest.raises(UsageError, match="train and test, not 'val'"):
        load_images(f"cifar10:{tmp_path}", split="val")
    with pytest.raises(UsageError, match="1 to 5"):
        load_cifar10(tmp_path, "train", batches=6)


def test_cifar10_from_the_binary_version(tmp_path: Path) -> None:
    images = small_set()
    assert images.labels is not None
    records = np.concatenate(
        [images.labels.numpy().astype(np.uint8)[:, None], images.images.reshape(20, -1).numpy()], axis=1
    )
    (tmp_path / "test_batch.bin").write_bytes(records.tobytes())
    assert load_images(f"cifar10:{tmp_path}").sha256() == images.sha256()
    (tmp_path / "test_batch.bin").write_bytes(records.tobytes()[:-1])
    with pytest.raises(InputError, match="61459 bytes"):
        load_images(f"cifar10:{tmp_path}")
    records[0, 0] = 10
    (tmp_path / "test_batch.bin").write_bytes(records.tobytes())
    with pytest.raises(InputError, match="label 10 has no name"):
        load_images(f"cifar10:{tmp_path}")


def test_cifar10_refuses_pickles_and_other_sizes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"test_batch\.npz cannot be read"):
        load_images(f"cifar10:{tmp_path}")
    (tmp_path / "test_batch").write_bytes(b"pickle")
    with pytest.raises(InputError, match="binary version"):
        load_images(f"cifar10:{tmp_path}")
    write_strips(tmp_path / "test_batch.npz", small_set(side=16))
    with pytest.raises(InputError, match="CIFAR-10 has"):
        load_images(f"cifar10:{tmp_path}")


def test_gtsrb(tmp_path: Path) -> None:
    write_strips(tmp_path / "test.npz", small_set(7))
    write_strips(tmp_path / "train_every3rd.npz", small_set(9))
    assert len(load_images(f"gtsrb:{tmp_path}")) == 7
    assert load_images(f"gtsrb:{tmp_path}", split="train").name == "gtsrb:train"
    with pytest.raises(UsageError, match="train and test"):
        load_images(f"gtsrb:{tmp_path}", split="all")


def test_bundled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundled, "_ASSETS", tmp_path)
    with pytest.raises(InputError, match="bundled:test is missing from this installation"):
        load_images("bundled")
    write_strips(tmp_path / "cifar10_test.npz", small_set(20))
    write_strips(tmp_path / "cifar10_calibration.npz", small_set(10))
    assert load_images("bundled").sha256() == load_images("bundled:test").sha256()
    assert len(load_images("bundled:calibration")) == len(load_images("bundled", split="calibration")) == 10
    with pytest.raises(UsageError, match="bundled:test and bundled:calibration"):
        load_images("bundled:train")


# Specifications


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "no data was named"),
        ("cifar10", "give cifar10:DIR"),
        ("gtsrb:", "give gtsrb:DIR"),
        ("hf:", "give hf:ID"),
        ("torchvision", "give torchvision:NAME"),
        ("cifar100:somewhere", "no known form of data; give one of FOLDER"),
    ],
)
def test_incomplete_specifications(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_images(spec)


@pytest.mark.parametrize("spec", ["missing", "missing/x.npz", "a\0b", "x" * 5000, "~nobody/x", "/dev/null"])
def test_paths_that_cannot_be_read(spec: str) -> None:
    with pytest.raises(InputError, match=r"cannot be read|a FIFO, a socket or a device") as caught:
        load_images(spec)
    assert len(str(caught.value)) < 500


def test_pipes_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.npz")
    with pytest.raises(InputError, match="a FIFO"):
        load_images(tmp_path / "a.npz")
    os.mkfifo(tmp_path / "test_batch.npz")
    with pytest.raises(InputError, match="a FIFO"):
        load_images(f"cifar10:{tmp_path}")


@pytest.mark.parametrize("name", ["a.pkl", "a.pt", "a.zip", "a.png", "README"])
def test_other_files_get_the_list_of_forms(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UsageError, match="give one of FOLDER"):
        load_images(tmp_path / name)


@pytest.mark.parametrize("limit", [0, -3])
def test_limit_must_leave_something(limit: int) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        load_images("missing", limit=limit)


@pytest.mark.parametrize("shape", [(4, 8, 8), (3, 0, 8), (3, 8)], ids=str)
def test_input_shape_must_be_that_of_images(shape: tuple[int, int, int]) -> None:
    with pytest.raises(UsageError, match="1 or 3 channels"):
        load_images("missing", input_shape=shape)


def test_a_path_is_never_a_scheme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    png(Path("bundled") / "a.png", 5)
    assert brightness(load_images(Path("bundled"))) == brightness(load_images("./bundled")) == [5]


def test_too_much_memory_is_refused_before_it_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantinel.data.guards.MAX_BYTES", 1000)
    with pytest.raises(InputError, match="limit of"):
        load_images(tree(tmp_path))


def test_the_list_of_forms_is_one_line_each() -> None:
    assert all("\n" not in line and len(form) < 24 for form, line in DATA_SOURCES.items())
    assert {"FOLDER", "FILE.npz", "FILE.parquet", "cifar10:DIR", "hf:ID"} <= DATA_SOURCES.keys()


# The complete data sets


@pytest.mark.shared
@needs_shared
def test_cifar10_is_the_authors_data() -> None:
    test = load_images(f"cifar10:{SHARED}/data/cifar10")
    assert test.labels is not None
    digest = hashlib.md5(usedforsecurity=False)
    for label, image in zip(test.labels.tolist(), test.images, strict=True):
        digest.update(bytes([label]) + image.numpy().tobytes())
    assert digest.hexdigest() == "803d5f7f4d78ea53de84dbe85f74fb6d"
    assert test.labels.bincount().tolist() == [1000] * 10


@pytest.mark.shared
@needs_shared
@pytest.mark.parametrize(("split", "count"), [("test", 12_630), ("train", 13_069)])
def test_gtsrb_is_complete(split: str, count: int) -> None:
    read = load_images(f"gtsrb:{SHARED}/data/gtsrb32", split=split)
    assert (len(read), read.shape, len(set(labels(read)))) == (count, (3, 32, 32), 43)


@pytest.mark.shared
@needs_shared
def test_imagenette_folder() -> None:
    read = load_images(f"{SHARED}/data/imagenette224_val_subset", input_shape=(3, 224, 224))
    assert read.labels is not None
    assert read.labels.bincount().tolist() == [40] * 10


@pytest.mark.shared
@needs_shared
def test_imagenette_parquet() -> None:
    pytest.importorskip("pyarrow")
    read = load_images(f"{SHARED}/data/imagenette64", limit=100)
    assert read.labels is not None
    assert read.labels.bincount().tolist() == [10] * 10
    assert read.class_names is not None
    assert read.class_names[0] == "tench"
    assert len(load_images(f"{SHARED}/data/imagenette64", split="train")) == 9469
