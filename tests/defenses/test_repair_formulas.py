"""The formulas of the repairs, against closed forms."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tests.support import make_images
from torch import Tensor, nn

from quantinel.defenses.fine_pruning import FinePruning, idle_features
from quantinel.defenses.ft_sam import worst_offsets
from quantinel.defenses.i_bau import fixed_point
from quantinel.defenses.mode_connectivity import ModeConnectivityRepair, on_curve
from quantinel.defenses.nad import NAD, attention, outputs_of, stage_names
from quantinel.defenses.repair import frozen_statistics, recompute_statistics, repaired
from quantinel.errors import UnsupportedError, UsageError
from quantinel.model.loading import load_model
from quantinel.model.zoo import build
from quantinel.quantization.scheme import parse_scheme
from quantinel.training.transforms import fake_quantize


def test_the_worst_neighbour_has_the_norm_of_the_radius_in_units_of_the_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(4, 3, generator=generator) for name in "ab"}
    gradients = {name: torch.randn(4, 3, generator=generator) for name in "ab"}
    offsets = worst_offsets(weights, gradients, 2.0)
    scaled = torch.cat([(offsets[name] / weights[name]).flatten() for name in "ab"])
    assert float(scaled.norm()) == pytest.approx(2.0, rel=1e-5)
    assert all((offsets[name] * gradients[name] >= 0).all() for name in "ab")


def test_the_fixed_point_is_that_of_a_linear_map() -> None:
    """phi(d) = A d + ..., v = A^T v + g: (I - A^T)^-1 g."""
    generator = torch.Generator().manual_seed(1)
    matrix, direct = 0.2 * torch.randn(3, 3, generator=generator), torch.randn(3, generator=generator)
    d = torch.zeros(3, requires_grad=True)
    found = fixed_point(matrix @ d, d, direct, 200)
    torch.testing.assert_close(found, torch.linalg.solve(torch.eye(3) - matrix.T, direct))
    torch.testing.assert_close(fixed_point(matrix @ d, d, direct, 1), direct)


def test_the_curve_begins_and_ends_at_its_ends() -> None:
    first, bend, last = ({"w": torch.full((2,), value)} for value in (1.0, 5.0, 3.0))
    assert on_curve(first, bend, last, 0.0)["w"].tolist() == [1.0, 1.0]
    assert on_curve(first, bend, last, 1.0)["w"].tolist() == [3.0, 3.0]
    assert on_curve(first, bend, last, 0.5)["w"].tolist() == [3.5, 3.5]


def test_attention_is_of_length_one_and_blind_to_scale() -> None:
    features = torch.randn(2, 5, 4, 4, generator=torch.Generator().manual_seed(2))
    found = attention(features)
    assert found.shape == (2, 16)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(found, attention(3 * features))


@pytest.mark.parametrize(
    ("architecture", "stages"),
    [("resnet20", ["layer1", "layer2", "layer3"]), ("vgg_small", None), ("mobilenetv2_small", None)],
)
def test_stages_are_found_in_any_convolutional_network(architecture: str, stages: list[str] | None) -> None:
    module, images = build(architecture, 10, 32).eval(), torch.rand(1, 3, 32, 32)
    found = stage_names(module, images)
    assert len(found) == 3
    assert stages is None or found == stages
    with outputs_of(module, found) as outputs:
        module(images)
    sizes = [output.shape[-1] for output in outputs]
    assert sizes == sorted(set(sizes), reverse=True)


def test_networks_without_what_a_repair_needs_are_refused() -> None:
    flat = load_model(nn.Sequential(nn.Flatten(), nn.Linear(48, 4)), input_shape=(3, 4, 4))
    with pytest.raises(UnsupportedError, match="feature maps"):
        repaired(flat, make_images(8, (3, 4, 4), 4), NAD(epochs=1.0))
    bare = load_model(nn.Sequential(nn.Conv2d(3, 4, 4), nn.Flatten()), input_shape=(3, 4, 4))
    with pytest.raises(UnsupportedError, match="linear layer"):
        repaired(bare, make_images(8, (3, 4, 4), 4), FinePruning(epochs=1.0))
    bare.module[0].register_module("unused", nn.Linear(3, 4))  # type: ignore[index, operator]
    with pytest.raises(UnsupportedError, match="never run"):
        repaired(bare, make_images(8, (3, 4, 4), 4), FinePruning(epochs=1.0))


def test_idle_features_go_while_accuracy_stays() -> None:
    """Features 0 and 1 decide; 2 is idle and 3 is busy but unread."""
    labels = torch.tensor([0, 1] * 10)
    features = torch.zeros(20, 4)
    features[:, 0], features[:, 1] = (labels == 0).float(), (labels == 1).float()
    features[:, 2], features[:, 3] = 0.01, 9.0
    head = nn.Linear(4, 3)
    with torch.no_grad():
        head.weight.copy_(torch.eye(3, 4) * torch.tensor([1.0, 1.0, 0.0, 0.0]))
        head.bias.copy_(torch.tensor([0.0, 0.0, 0.5]))  # the answer to nothing
    assert idle_features(features, head, labels, 0.1, 0.25).tolist() == [2]


def test_fine_pruning_removes_columns_for_good() -> None:
    module = nn.Sequential(nn.Conv2d(3, 20, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 4))
    with torch.no_grad():
        module[0].bias[:6] = -100.0  # type: ignore[index, operator]  # dead
    method = FinePruning(epochs=2.0, batch_size=8, padding=0, step=0.05)
    after = repaired(load_model(module, input_shape=(3, 8, 8)), make_images(24, (3, 8, 8), 4), method).module
    weight = after[4].weight  # type: ignore[index]
    assert (weight[:, :6] == 0).all()


def test_statistics_are_frozen_and_measured_anew() -> None:
    module = nn.Sequential(nn.BatchNorm2d(3)).train()
    images = make_images(20, (3, 8, 8), 4)
    with frozen_statistics(module):
        module(images.as_float())
    assert not module[0].running_mean.any()
    recompute_statistics(module, images.images, 10)
    expected = torch.stack([batch.mean((0, 2, 3)) for batch in images.batches(10)]).mean(0)
    torch.testing.assert_close(module[0].running_mean, expected)
    assert module[0].momentum == 0.1


def test_a_last_batch_that_is_small_does_not_count_like_the_others() -> None:
    module, images = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3)), make_images(21, (3, 8, 8), 4)
    recompute_statistics(module, images.images, 10)  # alone, the last image has no variance
    pooled = images.as_float().mean((2, 3))
    expected = (pooled[:10].mean(0) + pooled[10:].mean(0)) / 2
    torch.testing.assert_close(module[1].running_mean, expected)


def test_training_through_the_grid_sees_what_is_deployed() -> None:
    """The loss of the first step is that of the quantized network, and gradients pass straight through."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(48, 4))
    scheme = parse_scheme("int3")
    seen: list[Tensor] = []

    class Probe(FinePruning):
        def repair(self, task: object) -> None:
            images = task.run.images.float() / 255  # type: ignore[attr-defined]
            logits = task.network(images)  # type: ignore[attr-defined]
            logits.sum().backward()
            seen.append(logits.detach())
            seen.append(task.run.module[1].weight.grad)  # type: ignore[attr-defined]

    images = make_images(8, (3, 4, 4), 4)
    repaired(load_model(module, input_shape=(3, 4, 4)), images, Probe(through="quantized"), scheme=scheme)
    flat = images.as_float().flatten(1)
    weight, bias = module[1].weight.detach(), module[1].bias.detach()
    torch.testing.assert_close(seen[0], flat @ fake_quantize(weight, scheme).T + bias)
    torch.testing.assert_close(seen[1], flat.sum(0).expand(4, -1))


def test_options_are_checked() -> None:
    with pytest.raises(UsageError, match="position"):
        ModeConnectivityRepair(position=1.5)
    for changes in ({"epochs": 0.0}, {"through": "int8"}, {"batch_size": 0}, {"step": 0.0}):
        with pytest.raises(UsageError):
            dataclasses.replace(FinePruning(), **changes)  # type: ignore[arg-type]
