from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from quantinel.data.celeba import CLASSES
from quantinel.data.sources import load_images
from quantinel.errors import InputError, UsageError

# Attribute columns in the authors' order, as far as they matter: two that do not count in between.
NAMES = "Bald Heavy_Makeup Mouth_Slightly_Open Pale_Skin Smiling"
ROWS = {
    "000001.jpg": (0, "-1 -1 -1  1 -1"), "000002.jpg": (0, " 1  1 -1 -1 -1"), "000003.jpg": (0, "-1  1  1 -1  1"),
    "000004.jpg": (1, "-1 -1 -1 -1  1"), "000005.jpg": (2, "-1 -1  1 -1 -1"),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "img_align_celeba").mkdir()
    for number, name in enumerate(ROWS):
        Image.new("RGB", (18, 22), (40 * number,) * 3).save(tmp_path / "img_align_celeba" / name)
    lines = [str(len(ROWS)), NAMES, *(f"{name} {values}" for name, (_, values) in ROWS.items())]
    (tmp_path / "list_attr_celeba.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "list_eval_partition.txt").write_text("".join(f"{name} {part}\n" for name, (part, _) in ROWS.items()))
    return tmp_path


def test_three_attributes_make_eight_classes(folder: Path) -> None:
    train = load_images(f"celeba:{folder}", split="train", input_shape=(3, 16, 16))
    assert train.shape == (3, 16, 16)
    assert train.labels is not None
    assert train.labels.tolist() == [0, 4, 7]
    assert (train.name, train.class_names) == ("celeba:train", CLASSES)
    assert CLASSES[0] == "none"
    assert CLASSES[3] == "Mouth_Slightly_Open+Smiling"
    assert CLASSES[4] == "Heavy_Makeup"
    for split, label in (("val", 1), ("test", 2)):
        part = load_images(f"celeba:{folder}", split=split)
        assert part.labels is not None
        assert part.labels.tolist() == [label]
        assert part.shape == (3, 22, 18)
    assert len(load_images(f"celeba:{folder}", split="train", limit=2)) == 2


def test_other_files_are_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="train, val, test"):
        load_images(f"celeba:{folder}", split="validation")
    with pytest.raises(UsageError, match="give celeba:DIR"):
        load_images("celeba")
    attributes = folder / "list_attr_celeba.txt"
    text = attributes.read_text()
    for wrong, message in (
        (text.replace("Smiling", "Frowning"), "names no attribute Smiling"),
        (text.replace(" 1  1 -1 -1 -1", "2 2 2 2 2"), "000002.jpg has no 1 or -1"),
        (text.replace("000001", "100001").replace("000002", "1").replace("000003", "2"), "no picture of the split"),
        ("", "names no attribute"),
    ):
        attributes.write_text(wrong)
        with pytest.raises(InputError, match=message):
            load_images(f"celeba:{folder}", split="train")
    attributes.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="no text"):
        load_images(f"celeba:{folder}", split="train")
    (folder / "list_eval_partition.txt").write_text("000001.jpg\n")
    with pytest.raises(InputError, match="not a picture and a number"):
        load_images(f"celeba:{folder}", split="train")


def test_a_list_cannot_name_files_elsewhere(folder: Path) -> None:
    (folder / "secret.jpg").write_bytes((folder / "img_align_celeba" / "000005.jpg").read_bytes())
    for name in ("list_attr_celeba.txt", "list_eval_partition.txt"):
        path = folder / name
        path.write_text(path.read_text().replace("000005.jpg", "../secret.jpg"))
    with pytest.raises(InputError, match=r"secret\.jpg cannot be read"):
        load_images(f"celeba:{folder}", split="test")
