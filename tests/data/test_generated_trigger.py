from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import scipy.fft
import torch
from scipy.ndimage import correlate

from quantinel.data.frequency import dct_matrix
from quantinel.data.triggers import GeneratedTrigger, GeneratorOptions, TriggerGenerator, load_trigger, trigger_files
from quantinel.data.triggers.generated import WEIGHTS
from quantinel.data.triggers.low_pass import gaussian_blur, low_pass
from quantinel.data.triggers.reading import trigger_from_dict
from quantinel.errors import InputError

SMALL = GeneratorOptions(width=4, depth=2)


def images(count: int = 2, channels: int = 3, height: int = 16, width: int = 16) -> torch.Tensor:
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(0))


def made(options: GeneratorOptions = SMALL, seed: int = 0) -> GeneratedTrigger:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return GeneratedTrigger.of(TriggerGenerator(options))


def write(folder: Path, trigger: GeneratedTrigger, **changes: Any) -> Path:
    for name, data in trigger_files(trigger).items():
        (folder / name).write_bytes(data)
    (folder / "trigger.json").write_text(json.dumps({**trigger.to_dict(), **changes}))
    return folder / "trigger.json"


def test_the_cosine_transform_is_that_of_scipy() -> None:
    x = images(1, 1, 8, 8)[0, 0].double().numpy()
    matrix = dct_matrix(8).double().numpy()
    np.testing.assert_allclose(matrix @ x @ matrix.T, scipy.fft.dctn(x, norm="ortho"), atol=1e-6)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(8), atol=1e-6)


@pytest.mark.parametrize(("ratio", "rows", "columns"), [(0.5, 5, 6), (0.3, 3, 3), (0.01, 1, 1), (1.0, 10, 12)])
def test_low_pass_keeps_the_first_coefficients(ratio: float, rows: int, columns: int) -> None:
    x = images(2, 3, 10, 12).double().requires_grad_()
    spectrum = scipy.fft.dctn(x.detach().numpy(), axes=(2, 3), norm="ortho")
    spectrum[:, :, rows:], spectrum[:, :, :, columns:] = 0, 0
    smooth = low_pass(x, ratio)
    np.testing.assert_allclose(smooth.detach().numpy(), scipy.fft.idctn(spectrum, axes=(2, 3), norm="ortho"), atol=1e-6)
    np.testing.assert_allclose(low_pass(smooth, ratio).detach().numpy(), smooth.detach().numpy(), atol=1e-6)
    smooth.sum().backward()
    assert x.grad is not None


def test_blur() -> None:
    x = images(1, 2, 9, 9)
    kernel = np.exp(-0.5 * (np.arange(-2, 3) / 0.8) ** 2)
    kernel = np.outer(kernel, kernel) / kernel.sum() ** 2
    expected = [correlate(plane.numpy(), kernel.astype(np.float32), mode="mirror") for plane in x[0]]
    np.testing.assert_allclose(gaussian_blur(x, 5, 0.8)[0].numpy(), expected, atol=1e-6)
    assert gaussian_blur(x, 1, 0.8) is x
    torch.testing.assert_close(gaussian_blur(torch.ones(1, 1, 4, 4), 3, 0.5), torch.ones(1, 1, 4, 4))


@pytest.mark.parametrize("side", [(16, 16), (13, 18), (4, 4)])
def test_noise_is_smooth_and_bounded(side: tuple[int, int]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        generator = TriggerGenerator(GeneratorOptions(width=4, depth=2, magnitude=0.1, ratio=0.5))
    torch.nn.init.constant_(generator.network.last.weight, 30.0)  # a generator that shouts
    x = images(3, 3, *side)
    generator.requires_grad_(False)
    noise = generator.noise(x)
    assert noise.shape == x.shape
    assert float(noise.abs().max()) <= 0.1 * (1 + 1e-6)
    torch.testing.assert_close(low_pass(noise, 0.5), noise, atol=1e-5, rtol=0)
    torch.testing.assert_close(generator(x), generator.apply_noise(x, noise))
    torch.testing.assert_close(generator.noise(x[:1]), noise[:1], atol=1e-5, rtol=0)  # not of the batch


def test_it_is_a_value_like_other_triggers(tmp_path: Path) -> None:
    trigger = made()
    x = images()
    stamped = trigger(x)
    assert stamped.shape == x.shape
    assert float(stamped.min()) >= 0.0
    assert float(stamped.max()) <= 1.0
    assert not stamped.requires_grad
    torch.testing.assert_close(trigger(x[0]), stamped[0])
    read = load_trigger(write(tmp_path, trigger))
    assert read == trigger
    assert torch.equal(read(x), stamped)
    assert made(seed=1) != trigger
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["trigger.json", WEIGHTS]


def test_reading_draws_no_random_numbers(tmp_path: Path) -> None:
    path = write(tmp_path, made())
    state = torch.get_rng_state()
    load_trigger(path)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sha256": "0" * 64}, "sha256 differs"),
        ({"width": 8}, "not those of a generator with these options"),
        ({"width": 1_000_000}, "width"),
        ({"width": 6}, "multiple of 4"),
        ({"depth": 2.5}, "depth must be an integer"),
        ({"blur_size": 4}, "odd"),
        ({"magnitude": 0.0}, "changes nothing"),
        ({"bounded": 1}, "true or false"),
        ({"weights": "/etc/passwd"}, "unknown: weights"),
        ({"sha256": None}, "missing: sha256"),
    ],
)
def test_a_wrong_description_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_trigger(write(tmp_path, made(), **changes))


def test_wrong_weights_are_refused(tmp_path: Path) -> None:
    trigger = made()
    with pytest.raises(InputError, match="needs its weights"):
        trigger_from_dict(trigger.to_dict())
    with pytest.raises(InputError, match="damaged"):
        GeneratedTrigger(SMALL, b"not safetensors")
    state = safetensors.torch.load(trigger.weights)
    for change in (torch.nan, torch.inf):
        broken = {name: torch.full_like(tensor, change) for name, tensor in state.items()}
        with pytest.raises(InputError, match="not those of a generator"):
            GeneratedTrigger(SMALL, safetensors.torch.save(broken))
    halves = {name: tensor.half() for name, tensor in state.items()}
    with pytest.raises(InputError, match="not those of a generator"):
        GeneratedTrigger(SMALL, safetensors.torch.save(halves))
    path = write(tmp_path, trigger)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(InputError, match="cannot be read"):
        load_trigger(path)


def test_other_images_are_refused() -> None:
    with pytest.raises(InputError, match="3 channels and at least 4 pixels"):
        made()(images(channels=1))
    with pytest.raises(InputError, match="at least 4 pixels"):
        made()(images(height=3))
    with pytest.raises(InputError, match="floats"):
        made()(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
