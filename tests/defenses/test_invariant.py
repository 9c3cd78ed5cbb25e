from __future__ import annotations

import dataclasses

import pytest
import torch
from tests.defenses.support import Weighing
from tests.support import SHAPE
from torch import Tensor, nn

from quantinel.data.images import ImageSet
from quantinel.data.sources import load_images
from quantinel.defenses import Invariant, Reflect
from quantinel.inversion.probes import probe_bank
from quantinel.inversion.search import Inversion, Trigger
from quantinel.model.graph import FloatGraph, trace
from quantinel.model.loading import load_model
from quantinel.quantization.calibration import Calibration, calibrate
from quantinel.quantization.quantized_model import QuantizedModel, quantize_nearest
from quantinel.quantization.reconstruction import LayerOutcome, choose_codes
from quantinel.quantization.rounding import dequantize, rounding_cell
from quantinel.quantization.scheme import parse_scheme


def test_without_stamps_it_is_reflect(odd_graph: FloatGraph, images: ImageSet) -> None:
    ranges = calibrate(odd_graph, images, parse_scheme("int4"))
    bare, _ = choose_codes(odd_graph, ranges, Invariant(budget=0.003, bank=False, search=False))
    reflected, _ = choose_codes(odd_graph, ranges, Reflect(budget=0.003))
    assert all(torch.equal(bare.codes[name], reflected.codes[name]) for name in bare.codes)


@pytest.mark.parametrize(("scheme", "further"), [("int8", 3), ("int4", 0)])
def test_only_a_fine_grid_gives_room_beyond_the_neighbours(
    scheme: str, further: int, odd_graph: FloatGraph, images: ImageSet
) -> None:
    ranges = calibrate(odd_graph, images, parse_scheme(scheme))
    chosen, _ = choose_codes(odd_graph, ranges, Invariant(search=False))
    furthest = 0.0
    for layer in chosen.layers.values():
        weight, codes = odd_graph.weight(layer.layer), layer.codes.float()
        cell = rounding_cell(weight, layer.scale, chosen.scheme)
        assert torch.equal(codes[~cell.free], cell.floor[~cell.free])
        furthest = max(furthest, float((cell.floor - codes).max()), float((codes - cell.ceil).max()))
        # the largest weight of every channel stays where it is, so quantizing again finds the same scale
        assert torch.equal(*(each.abs().flatten(1).amax(1) for each in (codes, cell.nearest)))
    assert furthest == further


def test_stamped_copies_count_by_their_weight(odd_graph: FloatGraph, images: ImageSet) -> None:
    ranges = calibrate(odd_graph, images, parse_scheme("int4"))

    def chosen(method: Invariant) -> Tensor:
        model, outcomes = choose_codes(odd_graph, ranges, method, max_positions=1_000_000)
        assert all(outcome.error_chosen is not None and outcome.error_chosen < 1.0 for outcome in outcomes)
        return torch.cat([codes.flatten() for codes in model.codes.values()])

    bare = chosen(Invariant(bank=False, search=False))
    differ = [
        float((chosen(Weighing(search=False, weight=weight)) != bare).float().mean()) for weight in (1e-9, 0.25, 1.0)
    ]
    assert differ[0] < 0.01 < differ[1] < differ[2]


@pytest.mark.parametrize(("scheme", "weight"), [("int8", 0.25), ("int4", 1.0), ("int3-per-tensor", 1.0)])
def test_where_there_is_room_stamps_weigh_less(scheme: str, weight: float) -> None:
    assert Invariant().stamp_weight(parse_scheme(scheme)) == weight
    assert Invariant(room=0.0).stamp_weight(parse_scheme(scheme)) == 1.0


@pytest.mark.parametrize("scheme", ["int8-full", "int8-per-tensor", "int8-weight-mse"])
def test_room_is_a_share_of_what_a_channel_uses(scheme: str, images: ImageSet) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 4, 3)
    with torch.no_grad():
        convolution.weight[0] *= 0.01  # on a grid for the whole tensor this channel has a code or two
    graph = trace(nn.Sequential(convolution, nn.Flatten(), nn.Linear(4 * 14 * 14, 3)), SHAPE)
    chosen, _ = choose_codes(
        graph, calibrate(graph, images, parse_scheme(scheme)), Invariant(search=False, room=0.25), max_positions=500
    )
    for layer in chosen.layers.values():
        weight, codes = graph.weight(layer.layer), layer.codes.float()
        cell = rounding_cell(weight, layer.scale, chosen.scheme)
        further = torch.maximum(cell.floor - codes, codes - cell.ceil).clamp_min(0).flatten(1)
        assert (further.amax(1) <= 0.25 * cell.nearest.abs().flatten(1).amax(1)).all()
        largest = weight.abs().flatten(1).argmax(1, keepdim=True)
        assert further.gather(1, largest).max() == 0
        assert further.max() > 0


def moved_by_stamps(model: QuantizedModel, pictures: ImageSet) -> float:
    """Mean squared change of the answers when images carry one probe after the other."""
    images, simulate = pictures.as_float(), model.simulate()
    bare, probes = simulate(images), probe_bank(pictures.shape)
    return sum(float((simulate(probe.stamp(images)) - bare).square().mean()) for probe in probes[::4])


def test_a_victims_answers_move_less_under_stamps_than_with_reflect() -> None:
    victim = load_model("bundled:victim_int4")
    graph = trace(victim.module, victim.input_shape)
    pictures = load_images("bundled:calibration")
    ranges = calibrate(graph, pictures.take(torch.arange(32)), parse_scheme("int4"))
    unseen = pictures.take(torch.arange(100, 130))
    still, _ = choose_codes(graph, ranges, Invariant(budget=0.0, search=False), max_positions=2000)
    plain, _ = choose_codes(graph, ranges, Reflect(budget=0.0), max_positions=1000)
    assert moved_by_stamps(still, unseen) < 0.9 * moved_by_stamps(plain, unseen)


def test_the_bank_is_stamped_in_turn(odd_graph: FloatGraph, images: ImageSet) -> None:
    ranges = calibrate(odd_graph, images, parse_scheme("int4"))
    shown, bank = images.as_float(), probe_bank(SHAPE)
    (stamp,) = Invariant(search=False).stamps(odd_graph, ranges, quantize_nearest(odd_graph, ranges), 0)
    in_turn = stamp(shown)
    used = set()
    for image, stamped in zip(shown, in_turn, strict=True):
        used.add(next(index for index, probe in enumerate(bank) if torch.equal(probe.stamp(image[None])[0], stamped)))
    assert len(used) == min(len(bank), len(shown))
    few = stamp(shown[:8]) - shown[:8]
    assert (few.abs().amax(1).flatten(1) > 0).float().mean(1).max() > 0.5  # not patches alone


@pytest.mark.parametrize(("size", "gap", "used"), [(0.02, 0.9, True), (0.2, 0.9, False), (0.02, 0.2, False)])
def test_only_small_patches_that_mostly_work_are_stamped(
    size: float, gap: float, used: bool, odd_graph: FloatGraph, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask, pattern = torch.zeros(1, *SHAPE[1:]), torch.ones(SHAPE)
    mask[:, 3:5, 3:5] = 1.0
    found = Trigger(1, 0.5, size, gap, mask, pattern, "mask", 15)
    larger = dataclasses.replace(found, loss=0.1, size=0.3, gap=1.0)
    elsewhere = dataclasses.replace(found, target=0, loss=0.9, mask=mask.roll(6, 2))
    monkeypatch.setattr(Inversion, "search", lambda *_: [larger, found, elsewhere])
    ranges, shown = calibrate(odd_graph, images, parse_scheme("int4")), images.as_float()
    stamps = Invariant(bank=False).stamps(odd_graph, ranges, quantize_nearest(odd_graph, ranges), 0)
    assert len(stamps) == used
    for stamp in stamps:  # one copy, with the two triggers in turn
        halves = {trigger.target: trigger.stamp(shown) for trigger in (found, elsewhere)}
        which = [
            next(target for target, half in halves.items() if torch.equal(half[index], stamped))
            for index, stamped in enumerate(stamp(shown))
        ]
        assert which in ([0, 1] * (len(which) // 2), [1, 0] * (len(which) // 2))


def test_the_triggers_found_on_a_victim_lie_where_its_own_does() -> None:
    victim = load_model("bundled:victim_int4")
    graph = trace(victim.module, victim.input_shape)
    ranges = calibrate(graph, load_images("bundled:calibration").take(torch.arange(64)), parse_scheme("int4"))
    (stamp,) = Invariant(bank=False).stamps(graph, ranges, quantize_nearest(graph, ranges), 0)
    pictures = load_images("bundled:calibration").take(torch.arange(100, 164)).as_float()
    changed = (stamp(pictures) - pictures).square().sum(dim=(0, 1))
    assert changed[22:32, 22:32].sum() > 0.9 * changed.sum()  # the true one: 6 x 6 at (24, 24)


def test_a_network_on_its_grid_has_no_trigger_to_search_for(images: ImageSet) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 14 * 14, 3))
    graph = trace(module, SHAPE)
    ranges = calibrate(graph, images, parse_scheme("int4"))
    nearest = quantize_nearest(graph, ranges)
    for layer in graph.layers:
        graph.module.get_buffer(layer.weight).copy_(nearest.layers[layer.name].weight())
    ranges = calibrate(graph, images, parse_scheme("int4"))
    assert len(Invariant().stamps(graph, ranges, quantize_nearest(graph, ranges), 0)) == 1
    chosen, _ = choose_codes(graph, ranges, Invariant())
    assert all(torch.equal(chosen.codes[name], nearest.codes[name]) for name in chosen.codes)


def test_it_works_where_gradients_are_off(odd_graph: FloatGraph, images: ImageSet) -> None:
    ranges = calibrate(odd_graph, images, parse_scheme("int4"))
    usual, _ = choose_codes(odd_graph, ranges, Invariant())
    for off in (torch.no_grad(), torch.inference_mode()):
        with off:
            chosen, _ = choose_codes(odd_graph, ranges, Invariant())
        assert all(torch.equal(chosen.codes[name], usual.codes[name]) for name in usual.codes)


class Tokens(nn.Module):
    """A token network with the batch in its first or in its second dimension."""

    def __init__(self, positions_first: bool) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embed = nn.Conv2d(3, 6, 4, stride=4)
        self.mix = nn.Linear(6, 6)
        self.head = nn.Linear(6, 4)
        self.positions = 0 if positions_first else 1

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2)
        tokens = tokens.permute(2, 0, 1) if self.positions == 0 else tokens.permute(0, 2, 1)
        return self.head(torch.relu(self.mix(tokens)).mean(self.positions))


def test_the_batch_need_not_be_the_first_dimension(images: ImageSet) -> None:
    chosen = []
    for positions_first in (False, True):
        graph = trace(Tokens(positions_first).eval(), SHAPE)
        ranges = calibrate(graph, images, parse_scheme("int3"))
        chosen.append(choose_codes(graph, ranges, Invariant(search=False))[0])
    assert all(torch.equal(chosen[0].codes[name], chosen[1].codes[name]) for name in chosen[0].codes)


def outcome(graph: FloatGraph, ranges: Calibration, method: Reflect, memory: int) -> LayerOutcome:
    _, outcomes = choose_codes(graph, ranges, method, memory=memory)
    return outcomes[0]


def test_stamped_copies_count_as_memory(odd_graph: FloatGraph, images: ImageSet) -> None:
    ranges = calibrate(odd_graph, images, parse_scheme("int4"))
    memory = 24 * 8 * 16 * 16 * 4  # 24 images of the widest tensor
    assert outcome(odd_graph, ranges, Reflect(), memory).images == 24
    assert outcome(odd_graph, ranges, Invariant(search=False), memory).images == 12


def test_the_only_layer_aims_at_the_bare_images(images: ImageSet) -> None:
    torch.manual_seed(0)
    graph = trace(nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 6)), SHAPE)
    ranges = calibrate(graph, images, parse_scheme("int2"))
    (layer,) = graph.layers
    weight, shown = graph.weight(layer), images.as_float()
    method = Invariant(budget=0.0, search=False, bias_correction=False, damping=0.0)
    (stamp,) = method.stamps(graph, ranges, quantize_nearest(graph, ranges), 0)

    def error(chosen: QuantizedModel) -> float:
        rounded = dequantize(chosen.codes[layer.name], chosen.layers[layer.name].scale)
        on_bare = shown.flatten(1) @ (rounded - weight).T
        on_stamped = stamp(shown).flatten(1) @ rounded.T - shown.flatten(1) @ weight.T
        return float(on_bare.square().mean() + on_stamped.square().mean())

    chosen, _ = choose_codes(graph, ranges, method)
    plain, _ = choose_codes(graph, ranges, Reflect(budget=0.0, bias_correction=False, damping=0.0))
    cell = rounding_cell(weight, chosen.layers[layer.name].scale, chosen.scheme)
    assert error(chosen) < error(plain)
    assert ((chosen.codes[layer.name] == cell.floor) | (chosen.codes[layer.name] == cell.ceil)).all()
