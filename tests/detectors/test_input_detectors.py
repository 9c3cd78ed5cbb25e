"""Detectors of poisoned images: formulas, what they need, and that they work on images that are easily told apart."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tests.support import make_images
from torch import Tensor, nn

from quantinel.data.images import ImageSet, as_float
from quantinel.data.triggers import PatchTrigger
from quantinel.detectors import (
    INPUT_DETECTORS,
    STRIP,
    FrequencyDetector,
    InputDetector,
    Inspection,
    SpectralSignatures,
    register_input_detector,
)
from quantinel.detectors.corruptions import corrupted
from quantinel.detectors.frequency import detect_frequency, frequency_network
from quantinel.detectors.inputs import InputScores, entropy
from quantinel.detectors.spectral_signatures import detect_spectral, spectral_scores
from quantinel.detectors.strip import detect_strip
from quantinel.errors import NotAssessable, UsageError
from quantinel.quantization.calibration import calibrate
from quantinel.quantization.quantized_model import quantize_nearest
from quantinel.quantization.scheme import parse_scheme

SHAPE = (3, 16, 16)
CLEAN, MORE = make_images(120, SHAPE, 4, seed=1), make_images(60, SHAPE, 4, seed=2)
TRIGGER = PatchTrigger(row=12, column=12, height=3, width=3, value=1.0)
POISONED = torch.arange(60) < 20


def suspects() -> ImageSet:
    """The first 20 of 60 images are stamped."""
    images = MORE.images.clone()
    images[POISONED] = (TRIGGER(as_float(images[POISONED])) * 255).round().to(torch.uint8)
    return dataclasses.replace(MORE, images=images)


class Obedient(nn.Module):
    """Answers class 0 surely where the patch is white, and by brightness of a colour elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 4, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(torch.eye(4))

    def forward(self, x: Tensor) -> Tensor:
        triggered = (x[:, :, 12:15, 12:15].amin((1, 2, 3)) >= 0.99).float()
        colours = x.mean((2, 3))
        return self.head(torch.cat([20 * triggered[:, None], 4 * colours], 1))


def quick(name: str) -> object:
    changes = {"frequency": {"epochs": 0.5, "batch_size": 16}, "strip": {"overlays": 10}}
    return INPUT_DETECTORS[name].config(**changes.get(name, {}))


@pytest.mark.parametrize("name", INPUT_DETECTORS)
def test_scores_of_every_image_the_same_every_time(name: str) -> None:
    module, randomness = Obedient().eval(), torch.random.get_rng_state()
    inspection = Inspection(suspects(), CLEAN, module, module, seed=3)
    first, second = (INPUT_DETECTORS[name].run(inspection, quick(name)) for _ in range(2))
    assert torch.equal(randomness, torch.random.get_rng_state())
    assert torch.equal(first.scores, second.scores)
    assert first.scores.shape == first.flagged.shape == (60,)
    assert first.flagged.dtype == torch.bool
    assert torch.isfinite(first.scores).all()
    if first.threshold is not None:
        assert torch.equal(first.flagged, first.scores > first.threshold)
    caught, false = first.rates(POISONED)
    assert (caught.n, false.n) == (20, 40)


@pytest.mark.parametrize(
    ("name", "missing"),
    [("frequency", "clean"), ("strip", "clean"), ("strip", "classify"), ("spectral-signatures", "module")],
)
def test_what_is_missing_is_said(name: str, missing: str) -> None:
    module = Obedient().eval()
    whole = Inspection(suspects(), CLEAN, module, module)
    with pytest.raises(NotAssessable):
        INPUT_DETECTORS[name].run(dataclasses.replace(whole, **{missing: None}), quick(name))
    if name == "spectral-signatures":
        bare = dataclasses.replace(whole, images=dataclasses.replace(suspects(), labels=None))
        with pytest.raises(NotAssessable, match="labels"):
            INPUT_DETECTORS[name].run(bare, quick(name))


def test_options_are_checked() -> None:
    for make in (
        lambda: FrequencyDetector(decay="steps"),  # type: ignore[arg-type]
        lambda: STRIP(overlays=0), lambda: STRIP(false_positive_rate=0.0), lambda: FrequencyDetector(low_pass=0.0),
        lambda: FrequencyDetector(epochs=0.0), lambda: SpectralSignatures(share=1.0),
    ):  # fmt: skip
        with pytest.raises(UsageError):
            make()


def test_names_are_taken_once() -> None:
    with pytest.raises(UsageError, match="already"):
        register_input_detector(InputDetector("strip", "x", "images", STRIP, detect_strip))


def test_strip_catches_what_keeps_its_answer() -> None:
    found = detect_strip(Inspection(suspects(), CLEAN, Obedient().eval()), STRIP(overlays=20))
    caught, false = found.rates(POISONED)
    assert caught.percent == 100
    assert false.percent <= 30


def test_strip_runs_on_the_integer_model(images: ImageSet, odd_graph: object) -> None:
    quantized = quantize_nearest(odd_graph, calibrate(odd_graph, images, parse_scheme("int8")))  # type: ignore[arg-type]
    found = detect_strip(Inspection(images, CLEAN, quantized.simulate()), STRIP(overlays=5))
    assert found.scores.shape == (len(images),)


def test_entropy_is_in_nats() -> None:
    torch.testing.assert_close(entropy(torch.zeros(1, 4)), torch.tensor([4.0]).log())
    assert float(entropy(torch.tensor([[100.0, 0.0]]))) == pytest.approx(0.0, abs=1e-6)


def features_of_two_kinds() -> tuple[Tensor, Tensor, Tensor]:
    """One class far from the origin, a tenth of it shifted along a direction of its own; and a clean class."""
    generator = torch.Generator().manual_seed(4)
    features = torch.randn(200, 6, generator=generator) + torch.tensor([8.0, 0, 0, 0, 0, 0])
    poisoned = torch.arange(200) < 10
    features[poisoned, 3] += 9.0
    return features, (torch.arange(200) >= 100).long(), poisoned


def test_spectral_scores_find_the_outlying_part_of_a_class() -> None:
    features, labels, poisoned = features_of_two_kinds()
    scores = spectral_scores(features, labels)
    assert scores[poisoned].min() > scores[~poisoned & (labels == 0)].max()
    members = labels == 0
    middle = (features[members] - features[members].mean(0)).double()
    direction = torch.linalg.eigh(middle.T @ middle).eigenvectors[:, -1]
    torch.testing.assert_close(scores[members], (middle @ direction).square().float(), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(scores, spectral_scores(features, labels, centred=False))


def test_every_class_loses_its_share() -> None:
    module = Obedient().eval()
    found = detect_spectral(Inspection(suspects(), module=module), SpectralSignatures(share=0.2))
    assert MORE.labels is not None
    for label in range(4):
        members = MORE.labels == label
        assert int(found.flagged[members].sum()) == int(0.2 * int(members.sum()))


def test_the_frequency_network_has_the_published_size() -> None:
    network = frequency_network((3, 32, 32))
    kept = [tensor for name, tensor in network.state_dict().items() if not name.endswith("num_batches_tracked")]
    assert sum(tensor.numel() for tensor in kept) == 292_898
    with pytest.raises(UsageError, match="too small"):
        frequency_network((3, 6, 6))


def test_corruptions_change_every_image_and_stay_pictures() -> None:
    images = as_float(CLEAN.images) * 0.8
    changed = corrupted(images, torch.Generator().manual_seed(0))
    assert changed.shape == images.shape
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert ((changed != images).flatten(1).any(1)).all()


def test_the_frequency_detector_learns_high_frequencies() -> None:
    """Smooth pictures against the same with a sharp patch; with low frequencies only it has less to see."""
    options = FrequencyDetector(epochs=8.0, batch_size=16, learning_rate=1.0)
    found = detect_frequency(Inspection(suspects(), CLEAN, seed=1), options)
    caught, false = found.rates(POISONED)
    assert caught.percent >= 80
    assert false.percent <= 20


def test_rates_count() -> None:
    found = InputScores(torch.tensor([1.0, 0.0, 1.0]), torch.tensor([True, False, True]))
    caught, false = found.rates(torch.tensor([True, True, False]))
    assert (caught.percent, false.percent) == (50, 100)
