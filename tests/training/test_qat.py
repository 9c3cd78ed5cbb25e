"""Quantization-aware training: what it descends on, that it repeats, and that it needs labels."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from tests.support import make_images
from torch import Tensor, nn

from quantinel.errors import UsageError
from quantinel.model.graph import trace
from quantinel.model.loading import LoadedModel
from quantinel.model.untrained import untrained_model
from quantinel.quantization.calibration import calibrate
from quantinel.quantization.quantized_model import quantize_nearest
from quantinel.quantization.scheme import parse_scheme
from quantinel.training.qat import QATRecipe, parse_qat, train_quantized

SHAPE, CLASSES = (3, 16, 16), 4
DATA = make_images(48, SHAPE, CLASSES)
RECIPE = QATRecipe(epochs=10.0, learning_rate=0.05, batch_size=16, padding=0, mirror=False)
INT3 = parse_scheme("int3-weight-only")


def fresh() -> LoadedModel:
    return untrained_model("vgg_small", CLASSES, SHAPE, seed=3)


def rounded_loss(model: LoadedModel) -> float:
    graph = trace(model.module, SHAPE)
    simulated = quantize_nearest(graph, calibrate(graph, DATA, INT3)).simulate()
    assert DATA.labels is not None
    with torch.no_grad():
        return float(F.cross_entropy(simulated(DATA.as_float()), DATA.labels))


def test_the_rounded_network_gets_better() -> None:
    model = fresh()
    before = rounded_loss(model)
    train_quantized(model, DATA, INT3, RECIPE)
    assert rounded_loss(model) < before - 0.1
    assert not model.module.training


def test_it_repeats_and_keeps_batch_statistics() -> None:
    states: list[dict[str, Tensor]] = []
    for seed in (1, 1, 2):
        model = fresh()
        train_quantized(model, DATA, parse_scheme("int4"), dataclasses.replace(RECIPE, epochs=1.0), seed=seed)
        states.append(model.module.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])
    start = fresh().module
    for name, part in start.named_modules():
        if isinstance(part, nn.BatchNorm2d):
            assert torch.equal(states[0][f"{name}.running_mean"], part.running_mean)  # type: ignore[arg-type]


def test_it_needs_labels() -> None:
    with pytest.raises(UsageError, match="labels"):
        train_quantized(fresh(), dataclasses.replace(DATA, labels=None), INT3, RECIPE)


def test_names_read_back() -> None:
    assert parse_qat("qat") == QATRecipe()
    assert parse_qat(QATRecipe(0.5).name) == QATRecipe(0.5)
    assert QATRecipe().name == "qat"
    with pytest.raises(UsageError, match="epochs is 0"):
        QATRecipe(0.0)
