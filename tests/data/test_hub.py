"""The two optional packages are stood in for by the few calls that are made of them."""

from __future__ import annotations

import io
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pillow

from quantinel.data.sources import load_images
from quantinel.errors import InputError, UsageError


def picture(value: int) -> Pillow.Image:
    return Pillow.new("RGB", (6, 6), (value, value, value))


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    picture(value).save(buffer, "PNG")
    return buffer.getvalue()


class Image:
    """A feature of `datasets`, known by the name of its class."""

    def __init__(self, decode: bool = True) -> None:
        self.decode = decode


class ClassLabel:
    names = ("a", "b")


class Table:
    """Rows, as `datasets.Dataset` gives them."""

    def __init__(self, columns: dict[str, list[Any]], features: dict[str, Any]) -> None:
        self.columns, self.features = columns, features

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, key: int | slice) -> dict[str, Any]:
        return {name: values[key] for name, values in self.columns.items()}

    def select_columns(self, names: list[str]) -> Table:
        return Table({n: self.columns[n] for n in names}, {n: self.features[n] for n in names})

    def cast_column(self, name: str, feature: Image) -> Table:
        assert not feature.decode
        return self


@pytest.fixture
def splits(monkeypatch: pytest.MonkeyPatch) -> dict[str, Table]:
    tables: dict[str, Table] = {}

    def load_dataset(path: str, configuration: str | None, split: str) -> Table:
        if path != "owner/set":
            raise ConnectionError("Couldn't reach\nthe Hub")
        if split not in tables:
            raise ValueError(f'Unknown split "{split}". Should be one of {list(tables)}.')
        return tables[split]

    module = types.ModuleType("datasets")
    module.__dict__.update(__version__="4.1.0", load_dataset=load_dataset, Image=Image)
    monkeypatch.setitem(sys.modules, "datasets", module)
    return tables


def table(count: int = 6, **columns: list[Any]) -> Table:
    stored = [{"bytes": png(i), "path": None} for i in range(count)]
    values = {"text": ["x"] * count, "img": stored, "label": [i % 2 for i in range(count)]} | columns
    return Table(values, {"text": object(), "img": Image(), "label": ClassLabel()})


def test_hugging_face_picks_columns_and_rows(splits: dict[str, Table]) -> None:
    splits["test"] = table()
    read = load_images("hf:owner/set", limit=4, seed=1, input_shape=(3, 4, 4))
    assert read.name == "hf:owner/set[test]"
    assert read.class_names == ("a", "b")
    assert read.labels is not None
    assert read.labels.bincount().tolist() == [2, 2]
    assert [int(image[0, 0, 0]) % 2 for image in read.images] == read.labels.tolist()


def test_hugging_face_falls_back_to_validation_but_never_to_training(splits: dict[str, Table]) -> None:
    splits["train"] = table()
    with pytest.raises(InputError, match=r"Should be one of \['train'\]"):
        load_images("hf:owner/set")
    splits["validation"] = table()
    assert load_images("hf:owner/set").name == "hf:owner/set[validation]"


def test_hugging_face_reads_files_of_its_cache(splits: dict[str, Table], tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(9))
    splits["test"] = table(1, img=[{"bytes": None, "path": str(tmp_path / "a.png")}], label=[-1])
    read = load_images("hf:owner/set:configuration")
    assert (read.labels, int(read.images.max())) == (None, 9)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": [0, None]}, "labels are missing"),
        ({"img": [{"bytes": b"x", "path": None}] * 2}, "row 0 is not a readable picture"),
        ({"img": [None, None]}, "row 0 holds no picture"),
    ],
    ids=["null label", "broken", "null picture"],
)
def test_hugging_face_gaps(splits: dict[str, Table], columns: dict[str, Any], message: str) -> None:
    splits["test"] = table(2, **columns)
    with pytest.raises(InputError, match=message):
        load_images("hf:owner/set")


def test_hugging_face_without_images_or_connection(splits: dict[str, Table]) -> None:
    splits["test"] = Table({"text": ["x"]}, {"text": object()})
    with pytest.raises(InputError, match="no image column among text"):
        load_images("hf:owner/set")
    splits["test"] = table(0)
    with pytest.raises(InputError, match="no rows"):
        load_images("hf:owner/set")
    with pytest.raises(InputError, match="Couldn't reach the Hub"):
        load_images("hf:other/set")


def test_old_datasets_could_run_code(splits: dict[str, Table], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["datasets"], "__version__", "2.14.0", raising=False)
    with pytest.raises(UsageError, match=r"3\.0 or newer"):
        load_images("hf:owner/set")


@pytest.mark.parametrize(("spec", "package"), [("hf:a/b", "datasets"), ("torchvision:MNIST", "torchvision")])
def test_missing_packages(monkeypatch: pytest.MonkeyPatch, spec: str, package: str) -> None:
    for module in ("datasets", "torchvision", "torchvision.datasets"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=f"pip install '{package}'"):
        load_images(spec)


class Digits:
    """The face of `torchvision.datasets.MNIST`; downloads into the given root."""

    classes = ("zero", "one")

    def __init__(self, root: str, train: bool, download: bool) -> None:
        marker = Path(root) / "downloaded"
        if download:
            if "offline" in root:
                raise OSError("no connection")
            sys.stdout.write("downloading\n")
            marker.touch()
        if not marker.exists():
            raise RuntimeError("Dataset not found")
        self.targets = [i % 2 for i in range(10 if train else 6)]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i: int) -> tuple[Pillow.Image, int]:
        return picture(i).convert("L"), self.targets[i]


@pytest.fixture
def torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("torchvision.datasets")
    module.__dict__.update(MNIST=Digits)
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", module)


@pytest.mark.usefixtures("torchvision")
def test_torchvision_downloads_once_and_never_prints_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        read = load_images(f"torchvision:mnist:{tmp_path}", limit=4, input_shape=(1, 6, 6))
    assert capsys.readouterr() == ("", "downloading\n")
    assert read.labels is not None
    assert read.labels.bincount().tolist() == [2, 2]
    assert [int(image.max()) % 2 for image in read.images] == read.labels.tolist()
    assert read.class_names == ("zero", "one")
    assert len(load_images(f"torchvision:MNIST:{tmp_path}", split="train")) == 10


@pytest.mark.usefixtures("torchvision")
def test_torchvision_refusals(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no connection"):
        load_images(f"torchvision:MNIST:{tmp_path / 'offline'}")
    with pytest.raises(UsageError, match="the names are CIFAR10"):
        load_images("torchvision:ImageNet")
    with pytest.raises(UsageError, match="splits train and test"):
        load_images("torchvision:MNIST", split="val")
