from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from quantinel.data import parquet
from quantinel.data.sources import load_images
from quantinel.errors import InputError, UsageError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def png(value: int, side: int = 6) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def structs(pictures: list[bytes | None]) -> Any:
    rows = [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(pictures)]
    return pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))


def write(path: Path, count: int = 20, start: int = 0, rows: int = 7, **columns: Any) -> Path:
    """Picture i is of brightness i and class i % 4, unless ``columns`` say otherwise; None drops one."""
    numbers = range(start, start + count)
    given = {"image": structs([png(i) for i in numbers]), "label": [i % 4 for i in numbers]} | columns
    table = pa.table({name: column for name, column in given.items() if column is not None})
    names = {"info": {"features": {"label": {"_type": "ClassLabel", "names": ["a", "b", "c", "d"]}}}}
    table = table.replace_schema_metadata({"huggingface": json.dumps(names)})
    pq.write_table(table, path, row_group_size=rows)
    return path


def brightness(images: Any) -> list[int]:
    return [int(image[0, 0, 0]) for image in images.images]


def test_file(tmp_path: Path) -> None:
    read = load_images(write(tmp_path / "a.parquet"))
    assert brightness(read) == list(range(20))
    assert read.labels is not None
    assert read.labels.tolist() == [i % 4 for i in range(20)]
    assert read.class_names == ("a", "b", "c", "d")
    assert read.shape == (3, 6, 6)


def test_several_files_keep_pictures_and_labels_together(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(parquet, "_ROWS_AT_ONCE", 3)
    for part in range(3):
        write(tmp_path / f"test-{part:05d}-of-00003.parquet", count=20, start=20 * part)
    write(tmp_path / "train-00000-of-00001.parquet", start=100)
    whole = load_images(tmp_path)
    assert whole.name == f"{tmp_path}[test]"
    assert brightness(whole) == list(range(60))
    for limit in (1, 8, 59):
        some = load_images(tmp_path, limit=limit, seed=1)
        assert some.labels is not None
        assert [value % 4 for value in brightness(some)] == some.labels.tolist()
        assert brightness(some) == sorted(set(brightness(some)))
    balanced = load_images(tmp_path, limit=8).labels
    assert balanced is not None
    assert balanced.bincount().tolist() == [2, 2, 2, 2]


def test_only_chosen_rows_are_decoded(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.parquet", count=20)
    kept = brightness(load_images(whole, limit=4, seed=5))
    pictures: list[bytes | None] = [png(i) if i in kept else b"broken" for i in range(20)]
    damaged = write(tmp_path / "b.parquet", image=structs(pictures))
    assert brightness(load_images(damaged, limit=4, seed=5)) == kept
    with pytest.raises(InputError, match=r"b\.parquet row \d+ is not a readable picture"):
        load_images(damaged)


def test_splits(tmp_path: Path) -> None:
    write(tmp_path / "train-00000-of-00001.parquet", count=4)
    with pytest.raises(UsageError, match="no split 'test', it has train"):
        load_images(tmp_path)
    write(tmp_path / "validation-00000-of-00001.parquet", count=6)
    assert len(load_images(tmp_path)) == 6
    assert load_images(tmp_path).name.endswith("[validation]")
    assert len(load_images(tmp_path, split="train")) == 4
    assert len(load_images(tmp_path, split="val")) == 6


def test_layout_of_the_hub_and_hidden_files(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "0000.parquet", count=3)
    (tmp_path / "data" / ".partial.parquet").write_bytes(b"")
    assert len(load_images(tmp_path)) == 3


def test_pictures_are_resized_arrays_of_bytes_too(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", count=2, image=None, img=[png(7, 9), png(8, 12)], label=[0, 1])
    read = load_images(path, input_shape=(1, 4, 4))
    assert (read.shape, brightness(read)) == ((1, 4, 4), [7, 8])
    with pytest.raises(InputError, match="12x12 pixels, the pictures before it 9x9"):
        load_images(path)


@pytest.mark.parametrize(
    ("label", "labelled"),
    [(None, False), ([-1] * 20, False), (pa.array([0] * 20, pa.uint8()), True)],
    ids=["none", "withheld", "uint8"],
)
def test_optional_labels(tmp_path: Path, label: Any, labelled: bool) -> None:
    read = load_images(write(tmp_path / "a.parquet", label=label), limit=5)
    assert (read.labels is not None) == labelled
    assert (read.class_names is not None) == labelled


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": ["cat"] * 20}, "labels must be integers"),
        ({"label": [0.5] * 20}, "labels must be integers"),
        ({"label": [None, *[1] * 19]}, "1 labels are missing"),
        ({"label": [-1, *[1] * 19]}, "from -1 to 1"),
        ({"label": [9] * 20}, "the label 9 has no name"),
        ({"image": None}, "no image column among label"),
        ({"image": structs([None] * 20)}, "row 0 holds no picture bytes"),
        ({"image": structs([b""] * 20)}, "row 0 is not a readable picture"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_columns(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_images(write(tmp_path / "a.parquet", **columns))
    assert "\n" not in str(caught.value)


def test_empty_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="0 rows"):
        load_images(write(tmp_path / "a.parquet", count=0, image=structs([]), label=pa.array([], pa.int64())))
    data = write(tmp_path / "b.parquet").read_bytes()
    for broken in (b"", data[:100], data[:-20], data[:200] + bytes(200) + data[400:]):
        (tmp_path / "b.parquet").write_bytes(broken)
        with pytest.raises(InputError, match=r"b\.parquet") as caught:
            load_images(tmp_path / "b.parquet")
        assert "\n" not in str(caught.value)


def test_missing_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UsageError, match=r"pip install 'quantinel\[parquet\]'"):
        load_images(path)


def test_numpy_indices_reach_every_row_group(tmp_path: Path) -> None:
    read = load_images(write(tmp_path / "a.parquet", count=20, rows=1), limit=19, seed=2)
    assert len(np.unique(brightness(read))) == 19
