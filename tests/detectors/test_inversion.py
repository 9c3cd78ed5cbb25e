from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quantinel.data.images import ImageSet
from quantinel.detectors import DETECTORS, Subject
from quantinel.detectors.neural_cleanse import NeuralCleanse
from quantinel.detectors.trigger_inversion import TriggerInversion, inverted
from quantinel.inversion.budget import Budget
from quantinel.inversion.search import Effort, Form, Inversion, Start, Trigger
from quantinel.model.graph import FloatGraph, trace
from quantinel.quantization.scheme import parse_scheme

TARGET = 2
QUICK = TriggerInversion(controls=5)


def network(backdoor: float = 0.0) -> FloatGraph:
    """Answers a class by the brightness of its rows; four pixels of a corner may speak for class 2."""
    weight = torch.zeros(4, 3, 8, 8)
    for index in range(4):
        weight[index, :, 2 * index : 2 * index + 2] = 0.1
    weight[TARGET, :, :2, :2] += backdoor
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    assert isinstance(module[1], nn.Linear)
    with torch.no_grad():
        module[1].weight.copy_(weight.flatten(1))
        module[1].bias.fill_(-0.5 * backdoor)
    return trace(module.eval(), (3, 8, 8))


def images() -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 100, (32, 3, 8, 8), generator=generator, dtype=torch.uint8)
    for index in range(32):
        pixels[index, :, 2 * (index % 4) : 2 * (index % 4) + 2] += 120
    return ImageSet(pixels, None, "rows")


def weights(graph: FloatGraph) -> dict[str, Tensor]:
    return {layer.weight: graph.weight(layer) for layer in graph.layers}


def subject() -> Subject:
    return Subject(network(), parse_scheme("int4"), images(), 0)


def control(generator: torch.Generator) -> dict[str, Tensor]:
    clean = weights(network())
    return {name: weight + 0.01 * torch.randn(weight.shape, generator=generator) for name, weight in clean.items()}


@pytest.mark.parametrize("form", ["mask", "additive"])
def test_finds_the_class_that_only_the_compressed_network_obeys(form: Form) -> None:
    given = subject()

    options = dataclasses.replace(QUICK, form=form)
    pictures = given.required_images().as_float()
    attacked = inverted(given, pictures, weights(network(1.5)), control, options)
    harmless = inverted(given, pictures, control(torch.Generator().manual_seed(99)), control, options)
    assert attacked.p_value is not None
    assert harmless.p_value is not None
    assert attacked.suspect_class == TARGET
    assert attacked.p_value < 0.01 < harmless.p_value
    assert attacked.score > harmless.score
    assert max(attacked.by_class, key=attacked.by_class.__getitem__) == TARGET
    triggered = attacked.tensors["triggered"]
    assert triggered.shape == (8, 3, 8, 8)
    assert float(triggered.min()) >= 0
    assert float(triggered.max()) <= 1
    if form == "mask":
        mask = attacked.tensors["mask"][0]
        assert float(mask[:2, :2].mean()) > 2 * float(mask.mean())


def starts() -> list[Start]:
    return [Start(target, torch.full((1, 8, 8), 0.3), torch.full((3, 8, 8), 0.5)) for target in range(4)]


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    given = subject()
    search = Inversion(given.graph, images().as_float(), "mask", 0)
    whole = search.search(weights(network(1.5)), starts(), Effort(12, 2))
    monkeypatch.setattr("quantinel.inversion.search._CHUNK_VALUES", 1)
    for together, alone in zip(whole, search.search(weights(network(1.5)), starts(), Effort(12, 2)), strict=True):
        assert alone.target == together.target
        assert alone.loss == pytest.approx(together.loss, rel=1e-4)


def test_a_search_goes_on_where_another_stopped() -> None:
    search = Inversion(subject().graph, images().as_float(), "mask", 0)
    compressed = weights(network(1.5))
    (short,) = search.search(compressed, starts()[TARGET : TARGET + 1], Effort(10, 4))
    (kept,) = search.search(compressed, [short.as_start()], Effort(0, 4))
    assert kept.loss == pytest.approx(short.loss, rel=1e-3)
    (better,) = search.search(compressed, [short.as_start()], Effort(40, 4))
    assert better.loss < short.loss


def test_a_search_without_time_stops_at_the_same_step_in_every_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantinel.inversion.search._CHUNK_VALUES", 1)
    ticks = itertools.count()
    search = Inversion(subject().graph, images().as_float(), "mask", 0)
    budget = Budget(200.0, lambda: float(next(ticks)))
    found = search.search(weights(network(1.5)), starts(), Effort(1000, 2), budget)
    assert 10 < found[0].steps < 1000
    assert {trigger.steps for trigger in found} == {found[0].steps}


def test_a_short_budget_shortens_the_copies_searches_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full search on the network against cut ones on its copies would find a trigger in anything."""
    taken: list[int] = []
    search = Inversion.search

    def spy(self: Inversion, *arguments: Any, **options: Any) -> list[Trigger]:
        found = search(self, *arguments, **options)
        taken.append(found[0].steps)
        return found

    monkeypatch.setattr(Inversion, "search", spy)
    ticks = itertools.count()
    given = dataclasses.replace(subject(), budget=Budget(100.0, lambda: float(next(ticks))))
    options = TriggerInversion(steps=100, controls=4)
    found = inverted(given, images().as_float(), weights(network(1.5)), control, options)
    assert any("shortened" in note for note in found.notes)
    assert set(taken[::2]) == {taken[0]}
    assert set(taken[1::2]) == {taken[1]}
    assert taken[1] < 100


def test_neural_cleanse_sees_a_backdoor_that_is_awake_in_float() -> None:
    detector = DETECTORS["neural-cleanse"]
    awake = detector.run(Subject(network(6.0), parse_scheme("int4"), images(), 0), NeuralCleanse(steps=60))
    assert awake.suspect_class == TARGET
    asleep = detector.run(subject(), NeuralCleanse(steps=60))
    assert awake.statistics["smallest_mask"] < 0.5 * asleep.statistics["smallest_mask"]
