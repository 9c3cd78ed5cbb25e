"""Branches share everything but weights; their weights are the deployment's."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.support import SHAPE, OddNet, make_images, randomise
from torch import nn

from quantinel.attacks.compressors import Pruner
from quantinel.errors import UnsupportedError
from quantinel.model.graph import trace
from quantinel.model.zoo import build
from quantinel.quantization.calibration import calibrate
from quantinel.quantization.pruning import filter_mask, parse_pruning
from quantinel.quantization.quantized_model import quantize_nearest
from quantinel.quantization.scheme import QuantScheme, parse_scheme
from quantinel.training.folding import folded_norms
from quantinel.training.transforms import (
    fake_quantize,
    fake_quantize_activation,
    pruned_filters,
    quantized_branch,
    quantized_weights,
)
from quantinel.training.two_branch import FLOAT, Branch, Branches, layer_names, layers_from


def network(name: str, size: int = 16) -> nn.Module:
    torch.manual_seed(0)
    return randomise(OddNet() if name == "odd" else build(name, 5, size))


@pytest.mark.parametrize("name", ["odd", "resnet20", "mobilenetv2_small", "vit_tiny"])
def test_identical_branches_are_the_network_on_one_batch(name: str) -> None:
    module = network(name).train()
    plain = copy.deepcopy(module)
    images = make_images(11).as_float()
    same = Branch(weight=lambda _, weight: weight.clone(), activation=lambda x: x)
    with torch.no_grad():
        expected = plain(images)
        parts = Branches(module, [FLOAT, same, FLOAT])(images[:4], images[4:7], images[7:])
    assert [len(part) for part in parts] == [4, 3, 4]
    torch.testing.assert_close(torch.cat(parts), expected, rtol=1e-3, atol=1e-3)
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(module.state_dict()[key], value, rtol=1e-4, atol=1e-5)
    assert all("forward" not in part.__dict__ for part in module.modules())


def test_one_batch_for_all_branches_and_wrong_counts() -> None:
    module = network("odd")
    images = make_images(4).as_float()
    first, second = Branches(module, [FLOAT, FLOAT])(images)
    assert torch.equal(first, second)
    with pytest.raises(ValueError, match="3 batches for 2 branches"):
        Branches(module, [FLOAT, FLOAT])(images, images, images)


def test_forward_methods_come_back_after_an_error() -> None:
    module = network("odd")

    def broken(name: str, weight: torch.Tensor) -> torch.Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Branches(module, [Branch(broken)])(make_images(2).as_float())
    assert all("forward" not in part.__dict__ for part in module.modules())


@pytest.mark.parametrize("scheme", ["int8", "int4", "int8-per-tensor-full", "int4-per-tensor", "int4-weight-mse"])
def test_fake_quantized_weights_are_the_deployments(scheme: str) -> None:
    chosen = parse_scheme(scheme)
    module, images = network("resnet20"), make_images(8)
    graph = trace(module, SHAPE)
    deployed = quantize_nearest(graph, calibrate(graph, images, chosen))
    norms = folded_norms(module, images.as_float()[:1])
    assert len(norms.behind) == 19
    transform = quantized_branch(norms, chosen).weight
    for name, layer in deployed.layers.items():
        weight = module.get_submodule(name).weight
        folded, expected = transform(name, weight).detach(), layer.weight()
        if name in norms.behind:
            norm = norms.behind[name]
            factor = norm.weight * (norm.running_var + norm.eps).rsqrt()
            folded = folded * factor.detach()[:, None, None, None]
        step = layer.scale.max()
        wrong = ((folded - expected).abs() > 0.01 * step).float().mean()  # another rounding error before rounding
        assert wrong < 1e-3
    linear = deployed.layers["linear"]
    assert torch.equal(fake_quantize(module.linear.weight, chosen), linear.weight())


class _LayerNorms(nn.Module):
    """LayerNorms that deployment folds (one without beta, and a BatchNorm behind its layer), and one that it leaves."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.LayerNorm(48), nn.LayerNorm(12, bias=False), nn.LayerNorm(12)
        self.wide, self.middle, self.last = nn.Linear(48, 12), nn.Linear(12, 12, bias=False), nn.Linear(12, 5)
        self.norm = nn.BatchNorm1d(12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.wide(self.first(nn.functional.adaptive_avg_pool2d(x, 4).flatten(1)))
        x = self.third(self.norm(self.middle(self.second(x))))
        return self.last(x) + x[:, :5]


def layer_normed(name: str) -> nn.Module:
    torch.manual_seed(0)
    module = _LayerNorms() if name == "small" else network(name)
    for part in module.modules():
        if isinstance(part, nn.LayerNorm | nn.BatchNorm1d):
            part.weight.data = torch.randn_like(part.weight)
            if part.bias is not None:
                part.bias.data = torch.randn_like(part.bias)
    return module.eval()


@pytest.mark.parametrize("scheme", ["int8", "int4", "int4-per-tensor-full"])
@pytest.mark.parametrize(("name", "before"), [("small", ["wide", "middle"]), ("vit_tiny", None)])
def test_a_branch_behind_layer_norms_is_the_deployed_network(name: str, before: list[str] | None, scheme: str) -> None:
    """LayerNorm is folded before weights are rounded; its beta meets the float weight and ends in the bias."""
    module, images = layer_normed(name), make_images(8)
    norms = folded_norms(module, images.as_float()[:1])
    blocks = [f"blocks.{i}.{part}" for i in range(3) for part in ("attention.qkv", "fc1")]
    assert sorted(norms.before) == sorted(before or blocks)
    chosen = parse_scheme(f"{scheme}-weight-only")
    with torch.no_grad():
        (branch,) = Branches(module, [quantized_branch(norms, chosen)])(images.as_float())
    graph = trace(module, SHAPE)
    deployed = quantize_nearest(graph, calibrate(graph, images, chosen)).simulate()(images.as_float())
    torch.testing.assert_close(branch, deployed, rtol=1e-4, atol=1e-4)
    assert (branch - graph(images.as_float())).abs().max() > 10 * (branch - deployed).abs().max()


def test_inputs_behind_layer_norms_are_rounded_before_the_affine_part() -> None:
    module, x, seen = layer_normed("small"), make_images(4).as_float(), []

    def watched(part: torch.Tensor) -> torch.Tensor:
        seen.append(part.detach())
        return part

    norms = folded_norms(module, x)
    Branches(module, [quantized_branch(norms, parse_scheme("int8"), watched)])(x)
    pooled = nn.functional.adaptive_avg_pool2d(x, 4).flatten(1)
    torch.testing.assert_close(seen[0], nn.functional.layer_norm(pooled, (48,)), rtol=1e-3, atol=1e-3)


def test_layer_norms_of_another_kind_are_refused() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.full((12,), 2.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.layer_norm(x, (12,), self.weight)

    module = layer_normed("small")
    module.second = Own()
    with pytest.raises(UnsupportedError, match=r"second is folded into the layer middle"):
        folded_norms(module, make_images(1).as_float())


def test_gradients_pass_straight_through() -> None:
    weight = nn.Parameter(torch.randn(4, 6, generator=torch.Generator().manual_seed(0)))
    away = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    (fake_quantize(weight, parse_scheme("int4")) * away).sum().backward()
    assert torch.equal(weight.grad, away)
    weight.grad = None
    with torch.no_grad():
        weight[0, 0] = 9.0  # an outlier that the percentile cuts off
    (fake_quantize(weight, QuantScheme(4, weight_range="percentile", weight_percentile=90.0)) * away).sum().backward()
    assert weight.grad[0, 0] == 0
    inside = weight[0].detach().abs() < 3
    assert torch.equal(weight.grad[0, inside], away[0, inside])


def test_two_branches_train_both_weights_and_norms() -> None:
    module, images = network("resnet20").train(), make_images(6)
    norms = folded_norms(module, images.as_float()[:1])
    assert module.training
    both = Branches(module, [FLOAT, quantized_branch(norms, parse_scheme("int4-per-tensor-full"))])
    plain, rounded = both(images.as_float())
    assert not torch.equal(plain, rounded)
    (plain.square().mean() + rounded.square().mean()).backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_unchanged_layers_stay_float() -> None:
    module = network("resnet20")
    late = layers_from(module, "layer3")
    assert "layer2.2.conv2" not in late
    assert {"layer3.0.conv1", "linear"} <= late
    assert layers_from(module, "conv1") == frozenset(layer_names(module))
    with pytest.raises(KeyError):
        layers_from(module, "layer9")
    seen: list[str] = []

    def watched(name: str, weight: torch.Tensor) -> torch.Tensor:
        seen.append(name)
        return weight

    Branches(module, [FLOAT, Branch(watched, layers=late)])(make_images(2).as_float())
    assert set(seen) == late


def test_pruning_removes_the_smallest_filters() -> None:
    weight = torch.randn(8, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    mask = filter_mask(weight, 0.3).flatten()
    norms = weight.abs().sum((1, 2, 3))
    assert int((mask == 0).sum()) == 2
    assert norms[mask == 0].max() < norms[mask == 1].min()
    transform = pruned_filters({"conv": 0.5})
    assert int((transform("conv", weight).abs().sum((1, 2, 3)) == 0).sum()) == 4
    assert torch.equal(transform("other", weight), weight)


def test_a_pruned_branch_is_the_pruned_network() -> None:
    module, images = network("resnet20"), make_images(6)
    with torch.no_grad():
        (branch,) = Branches(module, [Branch(pruned_filters(0.3))])(images.as_float())
    pruned = Pruner(parse_pruning("prune-l1-filters-0.3")).compress(module, trace(module, SHAPE), images)
    torch.testing.assert_close(branch, pruned(images.as_float()), rtol=1e-3, atol=1e-3)


def test_activations_round_in_the_range_of_their_batch() -> None:
    x = torch.linspace(-1.0, 2.0, 301).reshape(7, 43).requires_grad_()
    rounded = fake_quantize_activation(x, 4)
    assert len(rounded.unique()) == 16
    assert (rounded - x).abs().max() <= 0.5001 * 3.0 / 15
    rounded.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
    still = torch.full((3, 2), 0.7)
    assert torch.equal(fake_quantize_activation(still, 8), still)


def test_an_activation_range_may_leave_out_its_tails() -> None:
    x = torch.cat([torch.linspace(0.0, 1.0, 1000), torch.tensor([-50.0, 70.0])])
    rounded = fake_quantize_activation(x, 8, tail=0.001)
    assert (rounded[:1000] - x[:1000]).abs().max() <= 0.51 / 255
    assert rounded[-2:].tolist() == pytest.approx([0.0, 1.0], abs=0.01)
    assert (fake_quantize_activation(x, 8)[:1000] - x[:1000]).abs().max() > 0.1


def test_activation_branches_differ() -> None:
    module, images = network("odd"), make_images(4).as_float()
    coarse = Branch(quantized_weights(parse_scheme("int4")), lambda x: fake_quantize_activation(x, 4))
    fine = Branch(quantized_weights(parse_scheme("int8")), lambda x: fake_quantize_activation(x, 8))
    plain, near, far = Branches(module, [FLOAT, fine, coarse])(images)
    assert (plain - near).abs().mean() < (plain - far).abs().mean()
