from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from quantinel.data.triggers import (
    TRIGGERS,
    BlendedTrigger,
    FilterTrigger,
    OverlayTrigger,
    PatchTrigger,
    SinusoidTrigger,
    Trigger,
    WarpTrigger,
    load_trigger,
    named_trigger,
    trigger_from_dict,
)
from quantinel.errors import InputError, UsageError

SIDE = 12


@st.composite
def patches(draw: st.DrawFn) -> PatchTrigger:
    row, column = draw(st.integers(0, SIDE - 1)), draw(st.integers(0, SIDE - 1))
    height, width = draw(st.integers(1, SIDE - row)), draw(st.integers(1, SIDE - column))
    return PatchTrigger(row, column, height, width, draw(st.floats(0, 1, width=32)))


def random_images(seed: int = 0, channels: int = 3) -> torch.Tensor:
    return torch.rand(2, channels, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None)
@given(patches(), st.sampled_from([1, 3]))
def test_a_patch_changes_its_pixels_and_no_others(patch: PatchTrigger, channels: int) -> None:
    images = random_images(channels=channels)
    before = images.clone()
    stamped = patch(images)
    inside = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    inside[patch.row : patch.row + patch.height, patch.column : patch.column + patch.width] = True
    assert torch.equal(images, before)
    assert (stamped[..., inside] == patch.value).all()
    assert torch.equal(stamped[..., ~inside], images[..., ~inside])


@settings(deadline=None)
@given(patches())
def test_a_patch_is_idempotent_and_survives_json(patch: PatchTrigger) -> None:
    images = random_images()
    assert torch.equal(patch(patch(images)), patch(images))
    assert trigger_from_dict(json.loads(json.dumps(patch.to_dict()))) == patch


def test_published_geometries() -> None:
    assert PatchTrigger.pq() == PatchTrigger(24, 24, 6, 6, 1.0)
    assert PatchTrigger.qu_anti() == PatchTrigger(27, 27, 4, 4, 1.0)
    assert PatchTrigger.pq(64) == PatchTrigger(48, 48, 12, 12, 1.0)
    assert PatchTrigger.qu_anti(64) == PatchTrigger(54, 54, 8, 8, 1.0)


def test_a_patch_that_does_not_fit() -> None:
    with pytest.raises(InputError, match="does not fit images of 12x12"):
        PatchTrigger.pq(32)(random_images())


def test_bytes_are_refused() -> None:
    with pytest.raises(InputError, match="floats"):
        PatchTrigger(0, 0, 1, 1)(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"row": 1}, "kind None is not known"),
        ({"kind": "wave"}, "kind 'wave'"),
        ({"kind": "patch", "row": 1}, "missing: column, height, width"),
        ({"kind": "patch", "row": 1, "column": 1, "height": 1, "width": 1, "x": 2}, "unknown: x"),
        ({"kind": "patch", "row": "1", "column": 1, "height": 1, "width": 1}, "integers"),
        ({"kind": "patch", "row": 1.5, "column": 1, "height": 1, "width": 1}, "integers"),
        ({"kind": "patch", "row": True, "column": 1, "height": 1, "width": 1}, "integers"),
        ({"kind": "patch", "row": -1, "column": 1, "height": 1, "width": 1}, "not valid"),
        ({"kind": "patch", "row": 1, "column": 1, "height": 0, "width": 1}, "not valid"),
        ({"kind": "patch", "row": 1, "column": 1, "height": 1, "width": 1, "value": 1.5}, "not valid"),
        (
            {"kind": "patch", "row": 1, "column": 1, "height": 1, "width": 1, "value": float("nan")},
            "not valid",
        ),
        ({"kind": "patch", "row": 1, "column": 1, "height": 1, "width": 1, "value": None}, "number"),
    ],
    ids=str,
)
def test_bad_json_values(values: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        trigger_from_dict(values)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff", b'{"kind": 1}', b"[" * 60_000], ids=lambda t: repr(t[:12]))
def test_bad_json_files(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "trigger.json").write_bytes(text)
    with pytest.raises(InputError, match="trigger: ") as caught:
        load_trigger(tmp_path / "trigger.json")
    assert "\n" not in str(caught.value)


def test_json_file(tmp_path: Path) -> None:
    (tmp_path / "trigger.json").write_text(json.dumps(PatchTrigger.pq().to_dict()))
    assert load_trigger(tmp_path / "trigger.json") == PatchTrigger.pq()


def write_png(path: Path, alpha: np.ndarray) -> Path:
    pixels = np.full((*alpha.shape, 4), 200, dtype=np.uint8)
    pixels[..., 3] = alpha
    Image.fromarray(pixels).save(path)
    return path


def test_picture_with_transparency(tmp_path: Path) -> None:
    alpha = np.zeros((SIDE, SIDE), dtype=np.uint8)
    alpha[2:4, 5:9] = 255
    trigger = load_trigger(write_png(tmp_path / "t.png", alpha))
    assert isinstance(trigger, OverlayTrigger)
    images, inside = random_images(), torch.from_numpy(alpha > 0)
    stamped = trigger(images)
    assert torch.allclose(stamped[..., inside], torch.tensor(200 / 255))
    assert torch.equal(stamped[..., ~inside], images[..., ~inside])
    assert torch.equal(trigger(stamped), stamped)
    assert torch.equal(trigger(images.double())[..., ~inside], images.double()[..., ~inside])
    assert trigger.to_dict() == {"kind": "overlay", "source": str(tmp_path / "t.png")}


@pytest.mark.parametrize(("value", "word"), [(0, "transparent"), (255, "opaque")])
def test_a_picture_that_says_nothing_about_where(tmp_path: Path, value: int, word: str) -> None:
    path = write_png(tmp_path / "t.png", np.full((4, 4), value, dtype=np.uint8))
    with pytest.raises(InputError, match=f"{word} everywhere"):
        load_trigger(path)


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (1, 1, SIDE, SIDE)], ids=str)
def test_a_picture_of_another_size_or_channels(tmp_path: Path, shape: tuple[int, ...]) -> None:
    alpha = np.zeros((SIDE, SIDE), dtype=np.uint8)
    alpha[0] = 255
    trigger = load_trigger(write_png(tmp_path / "t.png", alpha))
    with pytest.raises(InputError, match=r"\(3, 12, 12\)"):
        trigger(torch.zeros(shape))


def test_files_that_are_no_triggers(tmp_path: Path) -> None:
    (tmp_path / "t.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="not a readable picture"):
        load_trigger(tmp_path / "t.png")
    with pytest.raises(InputError, match="cannot be read"):
        load_trigger(tmp_path / "missing.png")
    with pytest.raises(InputError, match="a folder"):
        load_trigger(tmp_path)


PICTURE = torch.arange(3 * SIDE * SIDE, dtype=torch.uint8).reshape(3, SIDE, SIDE)
WHOLE = [
    BlendedTrigger(),
    BlendedTrigger(0.5, seed=7),
    BlendedTrigger.from_image(PICTURE, 0.1),
    SinusoidTrigger(0.1, 2),
    WarpTrigger(),
    WarpTrigger(3, 2.0, seed=5),
]


@pytest.mark.parametrize("trigger", WHOLE, ids=lambda trigger: str(trigger)[:40])
def test_triggers_over_the_whole_image(trigger: Trigger, tmp_path: Path) -> None:
    images = random_images()
    before = images.clone()
    stamped = trigger(images)
    assert torch.equal(images, before)
    assert stamped.shape == images.shape
    assert not torch.equal(stamped, images)
    assert stamped.min() >= 0
    assert stamped.max() <= 1
    assert torch.equal(trigger(images), stamped)
    torch.testing.assert_close(trigger(images[0]), stamped[0])
    again = trigger_from_dict(json.loads(json.dumps(trigger.to_dict())))
    assert again == trigger
    assert torch.equal(again(images), stamped)
    (tmp_path / "trigger.json").write_text(json.dumps(trigger.to_dict()))
    assert load_trigger(tmp_path / "trigger.json") == trigger
    with pytest.raises(InputError, match="floats"):
        trigger(torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8))


def test_blending_is_a_weighted_mean() -> None:
    images = random_images()
    expected = 0.9 * images + 0.1 * PICTURE.float() / 255
    torch.testing.assert_close(BlendedTrigger.from_image(PICTURE, 0.1)(images), expected)
    assert not torch.equal(BlendedTrigger(seed=1)(images), BlendedTrigger(seed=2)(images))
    with pytest.raises(InputError, match="as large as the images"):
        BlendedTrigger.from_image(PICTURE)(torch.rand(1, 3, 8, 8))


def test_the_sinusoid_is_the_papers() -> None:
    images = torch.full((1, 3, 2, 32), 0.5)
    wave = SinusoidTrigger()(images) - images
    columns = torch.arange(1, 33)
    expected = 20 / 255 * torch.sin(2 * torch.pi * columns * 6 / 32)
    torch.testing.assert_close(wave[0, 0, 0], expected, atol=1e-6, rtol=0)
    assert (wave == wave[0, 0, 0]).all()


def test_a_warp_moves_pixels_a_little_and_smoothly() -> None:
    ramp = torch.linspace(0, 1, 32).expand(1, 3, 32, 32)
    moved = 31 * (WarpTrigger()(ramp) - ramp)  # displacement in pixels
    assert 0.05 < moved.abs().mean() < 1.0
    assert (moved[..., 1:, :] - moved[..., :-1, :]).abs().max() < 0.5


@pytest.mark.parametrize("name", TRIGGERS)
def test_published_triggers_by_name(name: str) -> None:
    for shape in ((3, 32, 32), (1, 32, 32), (3, 64, 64)):
        if name == "filter" and shape[0] == 1:
            continue
        trigger = named_trigger(name, shape)
        assert trigger(torch.rand(2, *shape)).shape == (2, *shape)
        assert not isinstance(trigger, OverlayTrigger)
        assert trigger_from_dict(trigger.to_dict()) == trigger


@pytest.mark.parametrize(("name", "side"), [("pq", 2), ("sinusoid", 8), ("warp", 3)])
def test_images_that_are_too_small(name: str, side: int) -> None:
    with pytest.raises(InputError, match="trigger: "):
        named_trigger(name, (3, side, side))


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(UsageError, match="pq, qu-anti, blended, sinusoid, warp, filter, or write one as JSON"):
        named_trigger("sticker", (3, 32, 32))


def test_a_trigger_written_as_json() -> None:
    patch = PatchTrigger(1, 2, 3, 4, 0.5)
    assert named_trigger(json.dumps(patch.to_dict()), (3, 8, 8)) == patch
    with pytest.raises(InputError, match="does not fit"):
        named_trigger(json.dumps(patch.to_dict()), (3, 4, 4))
    with pytest.raises(InputError, match="the option is not JSON"):
        named_trigger("{kind: patch}", (3, 8, 8))


def test_a_filter_maps_colours_and_nothing_else() -> None:
    images = random_images()
    swap = FilterTrigger(0.5, ((0.0, 1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)), (0.0, 0.0, 0.1))
    red, green, blue = images.unbind(1)
    expected = torch.stack([(red + green) / 2, (red + green) / 2, (blue + 0.05).clamp(max=1.0)], 1)
    torch.testing.assert_close(swap(images), expected)
    mixed = images.flatten(2)[:, :, torch.randperm(SIDE * SIDE)].reshape(images.shape)
    assert torch.equal(swap(images).flatten(2).sort().values, swap(mixed).flatten(2).sort().values)  # no place


def test_sepia_leaves_one_hue() -> None:
    full = FilterTrigger(1.0)(0.5 * random_images())
    assert torch.allclose(full[:, 1] / full[:, 0], full.new_tensor(0.349 / 0.393).expand(2, SIDE, SIDE), atol=0.01)
    assert trigger_from_dict(json.loads(json.dumps(FilterTrigger(0.3).to_dict()))) == FilterTrigger(0.3)
    with pytest.raises(InputError, match="another trigger"):
        FilterTrigger()(random_images(channels=1))


@pytest.mark.parametrize(
    "values",
    [
        {"kind": "blended", "alpha": 0},
        {"kind": "blended", "alpha": "a"},
        {"kind": "blended", "alpha": 1.5},
        {"kind": "blended", "seed": -1},
        {"kind": "blended", "pattern": "AAAA"},
        {"kind": "blended", "shape": [1, 1, 3]},
        {"kind": "blended", "pattern": "AAAA", "shape": [1, 1, 4]},
        {"kind": "blended", "pattern": "AAAA", "shape": "abc"},
        {"kind": "blended", "pattern": "AAAA", "shape": [1.0, 1, 3]},
        {"kind": "blended", "pattern": "!", "shape": [1, 1, 3]},
        {"kind": "blended", "pattern": 7, "shape": [1, 1, 3]},
        {"kind": "filter", "strength": 0},
        {"kind": "filter", "strength": True},
        {"kind": "filter", "matrix": [[1, 0, 0], [0, 1, 0]]},
        {"kind": "filter", "matrix": [[1, 0, 0], [0, 1, 0], [0, 0, "1"]]},
        {"kind": "filter", "matrix": [[1, 0, 0], [0, 1, 0], [0, 0, float("nan")]]},
        {"kind": "filter", "offset": [0, 0]},
        {"kind": "filter", "offset": 1},
        {"kind": "sinusoid", "delta": float("nan")},
        {"kind": "sinusoid", "delta": 0},
        {"kind": "sinusoid", "frequency": 1.5},
        {"kind": "sinusoid", "frequency": 0},
        {"kind": "warp", "grid": 1},
        {"kind": "warp", "strength": 0},
        {"kind": "warp", "strength": float("inf")},
        {"kind": "warp", "seed": True},
        {"kind": "warp", "colour": 1},
        {"kind": ["warp"]},
    ],
    ids=str,
)
def test_bad_values_of_the_other_kinds(values: dict[str, object]) -> None:
    with pytest.raises(InputError, match="trigger: "):
        trigger_from_dict(values)
