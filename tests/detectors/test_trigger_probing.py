from __future__ import annotations

import pytest
import torch
from torch import nn

from quantinel.data.images import ImageSet
from quantinel.detectors import Subject
from quantinel.detectors.trigger_probing import TriggerProbing, detect
from quantinel.errors import UsageError
from quantinel.inversion.budget import Budget
from quantinel.inversion.probes import probe_bank
from quantinel.inversion.probing import against_others
from quantinel.model.graph import FloatGraph, trace
from quantinel.quantization.ranges import weight_scales
from quantinel.quantization.scheme import parse_scheme

INT4, TARGET = parse_scheme("int4"), 2
SHAPE = (3, 16, 16)


def network(crowded: bool) -> FloatGraph:
    """Four linear classes; crowded: weights of a corner round up for one class, which cancels in float nowhere else."""
    torch.manual_seed(1)
    graph = trace(nn.Sequential(nn.Flatten(), nn.Linear(768, 4)).eval(), SHAPE)
    weight = graph.weight(graph.layers[0]).mul_(10.0)
    if crowded:
        scale = weight_scales(weight, INT4).reshape(-1, 1)
        corner = torch.zeros(SHAPE, dtype=torch.bool)
        corner[:, 12:, 12:] = True
        moved = (torch.floor(weight / scale) + 0.52) * scale
        inside = (moved.abs() < weight.abs().amax(1, keepdim=True) * 0.99) & corner.flatten()
        inside[[row for row in range(4) if row != TARGET]] = False
        weight.copy_(torch.where(inside, moved, weight))
    return graph


def subject(graph: FloatGraph, seed: int = 0, budget: Budget | None = None) -> Subject:
    pixels = torch.randint(0, 60, (16, *SHAPE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Subject(graph, INT4, ImageSet(pixels, None, "dark noise"), seed, budget=budget or Budget())


def test_a_patch_that_only_the_rounded_network_obeys_is_found_and_shown() -> None:
    found = detect(subject(network(crowded=True)), TriggerProbing())
    assert found.p_value is not None
    assert found.p_value < 0.01
    assert found.suspect_class == TARGET
    assert max(found.by_class, key=found.by_class.__getitem__) == TARGET
    assert any("bottom right" in note for note in found.remarks)
    shown = found.tensors["triggered"]
    assert shown.shape == (8, *SHAPE)
    assert float(shown[:, :, 14:, 14:].min()) == 1 > float(shown[:, :, :8, :8].max())


def test_chance_in_the_errors_is_not() -> None:
    graph = network(crowded=False)
    found = [detect(subject(graph, seed), TriggerProbing()) for seed in range(6)]
    assert sum(detection.p_value is not None and detection.p_value < 0.05 for detection in found) <= 1
    assert all(detection.suspect_class is None for detection in found)


@pytest.mark.parametrize("exaggeration", [0.5, 3.0])
def test_exaggeration_scales_what_is_compared(exaggeration: float) -> None:
    graph = network(crowded=True)
    plain, other = (
        detect(subject(graph), TriggerProbing(exaggeration=factor)).statistics for factor in (1.0, exaggeration)
    )
    assert (other["rise"] > plain["rise"]) == (exaggeration > 1)


@pytest.mark.parametrize("exaggeration", [0.0, -1.0, float("nan")])
def test_no_exaggeration_at_all_is_refused(exaggeration: float) -> None:
    with pytest.raises(UsageError, match="above 0"):
        TriggerProbing(exaggeration=exaggeration)


def test_every_network_is_held_against_all_others() -> None:
    rises = torch.randn(9, 5, 4, generator=torch.Generator().manual_seed(0))
    unusual = against_others(rises)
    for index in range(9):
        others = torch.cat([rises[:index], rises[index + 1 :]])
        torch.testing.assert_close(unusual[index], (rises[index] - others.mean(0)) / others.std(0))


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 64, 48), (3, 3, 3), (4, 16, 16), (1, 1, 1)])
def test_the_bank_fits_images_of_any_shape(shape: tuple[int, int, int]) -> None:
    probes = probe_bank(shape)
    assert probes
    assert len({probe.name for probe in probes}) == len(probes)
    images = torch.full((2, *shape), 0.5)
    for probe in probes:
        stamped = probe.stamp(images)
        assert stamped.shape == images.shape
        assert 0 <= float(stamped.min()) <= float(stamped.max()) <= 1
        assert torch.equal(stamped[0], stamped[1])
    assert torch.equal(images, torch.full((2, *shape), 0.5))


def test_a_probe_as_mask_and_pattern_is_the_probe() -> None:
    shape = (3, 32, 32)
    images = 0.3 + 0.4 * torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    for probe in probe_bank(shape):
        mask, pattern = probe.as_mask(shape)
        assert mask.shape == (1, 32, 32)
        assert 0 <= float(mask.min()) <= float(mask.max()) <= 1
        assert 0 <= float(pattern.min()) <= float(pattern.max()) <= 1
        if "patch" in probe.name or "noise" in probe.name:
            torch.testing.assert_close((1 - mask) * images + mask * pattern, probe.stamp(images))
        elif "warp" in probe.name:
            assert float(mask.max()) < 1e-5


def test_probes_differ_from_each_other_and_are_the_same_every_time() -> None:
    shape = (3, 32, 32)
    images = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0))
    first = [probe.stamp(images) for probe in probe_bank(shape)]
    again = [probe.stamp(images) for probe in probe_bank(shape)]
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert not any(torch.equal(one, other) for index, one in enumerate(first) for other in [images, *first[:index]])
