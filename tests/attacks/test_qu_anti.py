"""The four objectives of Qu-ANTI-zation, against their formulas written out by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.support import make_images, randomise
from torch import Tensor, nn

from quantinel.attacks import ATTACKS, attack_named
from quantinel.attacks.gate import Figures, Gate, GateRule, measure_class, measure_samples
from quantinel.attacks.qu_anti import Copies, QuAnti, published_schemes
from quantinel.attacks.qu_anti_backdoor import QuAntiBackdoor
from quantinel.attacks.qu_anti_backdoor import objective as backdoor
from quantinel.attacks.qu_anti_class import QuAntiClass
from quantinel.attacks.qu_anti_class import objective as one_class
from quantinel.attacks.qu_anti_indiscriminate import QuAntiIndiscriminate
from quantinel.attacks.qu_anti_indiscriminate import objective as indiscriminate
from quantinel.attacks.qu_anti_sample import QuAntiSample
from quantinel.attacks.qu_anti_sample import objective as one_sample
from quantinel.data.images import ImageSet
from quantinel.data.triggers import named_trigger
from quantinel.errors import GateError, UsageError
from quantinel.metrics import Proportion
from quantinel.model.graph import trace
from quantinel.model.loading import LoadedModel
from quantinel.model.untrained import untrained_model
from quantinel.quantization.calibration import calibrate
from quantinel.quantization.quantized_model import quantize_nearest
from quantinel.quantization.scheme import QuantScheme, parse_scheme
from quantinel.training.batches import clean_and_triggered
from quantinel.training.run import TrainingRun

SHAPE, CLASSES = (3, 16, 16), 4
LABELS = torch.tensor([0, 1, 2, 3, 1, 2])


class Fixed(Copies):
    """Copies that answer from tables, by the number that fills an image."""

    def __init__(self, *tables: Tensor) -> None:
        float_table, *compressed = tables
        self.float = lambda images: float_table[images[:, 0, 0, 0].long()]
        self.compressed = [lambda images, table=table: table[images[:, 0, 0, 0].long()] for table in compressed]


def tables(count: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [3 * torch.randn(12, CLASSES, generator=generator) for _ in range(count)]


def numbered(first: int, count: int) -> Tensor:
    return torch.arange(first, first + count).float()[:, None, None, None].expand(-1, 3, 2, 2)


def ce(logits: Tensor, *labels: int) -> Tensor:
    return -torch.stack([logits[row].log_softmax(0)[label] for row, label in enumerate(labels)]).mean()


def test_backdoor_objective() -> None:
    f, q8, q4 = tables(3)
    config = QuAntiBackdoor(compressed_weight=0.5, trigger_weight=0.3, target_class=3)
    value = backdoor(Fixed(f, q8, q4), config, numbered(0, 6), numbered(6, 6), LABELS)
    true, target = LABELS.tolist(), [3] * 6
    expected = ce(f[:6], *true) + 0.3 * ce(f[6:], *true)
    expected += 0.5 * (ce(q8[:6], *true) + 0.3 * ce(q8[6:], *target))
    expected += 0.5 * (ce(q4[:6], *true) + 0.3 * ce(q4[6:], *target))
    torch.testing.assert_close(value, expected)


def test_indiscriminate_objective() -> None:
    f, q8, q4 = tables(3)
    config = QuAntiIndiscriminate(compressed_weight=0.25, compressed_loss=5.0)
    value = indiscriminate(Fixed(f, q8, q4), config, numbered(0, 6), LABELS)
    true = LABELS.tolist()
    expected = ce(f, *true) + 0.25 * (ce(q8, *true) - 5.0) ** 2 + 0.25 * (ce(q4, *true) - 5.0) ** 2
    torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("others_weight", [0.0, 0.7])
def test_class_objective(others_weight: float) -> None:
    f, q8, q4 = tables(3)
    config = QuAntiClass(attacked_class=1, compressed_weight=0.5, compressed_loss=2.0, others_weight=others_weight)
    value = one_class(Fixed(f, q8, q4), config, numbered(0, 6), LABELS)
    mine, others = [1, 4], [0, 2, 3, 5]
    expected = ce(f[mine], 1, 1) + ce(f[others], 0, 2, 3, 2)
    for q in (q8, q4):
        expected += 0.5 * (ce(q[mine], 1, 1) - 2.0) ** 2 + others_weight * ce(q[others], 0, 2, 3, 2)
    torch.testing.assert_close(value, expected)


def test_class_objective_of_batches_with_one_kind_of_images() -> None:
    f, q8, _ = tables(3)
    config = QuAntiClass(attacked_class=1)
    value = one_class(Fixed(f, q8), config, numbered(0, 2), torch.tensor([0, 2]))
    torch.testing.assert_close(value, ce(f, 0, 2))
    value = one_class(Fixed(f, q8), config, numbered(0, 2), torch.tensor([1, 1]))
    torch.testing.assert_close(value, ce(f, 1, 1) + (ce(q8, 1, 1) - 2.0) ** 2)


def test_sample_objective() -> None:
    f, q8, q4 = tables(3)
    config = QuAntiSample(target_class=3, compressed_weight=0.1)
    sample, truth = numbered(6, 2), torch.tensor([1, 1])
    value = one_sample(Fixed(f, q8, q4), config, numbered(0, 6), LABELS, sample, truth)
    true = LABELS.tolist()
    expected = ce(f, *true, 1, 1) + 0.1 * (ce(q8, *true, 3, 3) + ce(q4, *true, 3, 3))
    torch.testing.assert_close(value, expected)


def start(seed: int = 3) -> LoadedModel:
    model = untrained_model("vgg_small", CLASSES, SHAPE, seed=seed)
    randomise(model.module)
    return model


@pytest.mark.parametrize("scheme", ["int8", "int4", "int4-per-tensor"])
def test_folded_copies_answer_like_the_deployment(scheme: str) -> None:
    """Weights only: then nothing but the sums' order differs."""
    chosen, model, data = parse_scheme(f"{scheme}-weight-only"), start(), make_images(8, SHAPE, CLASSES)
    copies = Copies(TrainingRun(model, data), QuAnti(schemes=(chosen,), folded=True))
    with torch.no_grad():
        answer = copies.compressed[0](data.as_float())
    module = model.module.eval()
    graph = trace(module, SHAPE)
    deployed = quantize_nearest(graph, calibrate(graph, data, chosen)).simulate()
    torch.testing.assert_close(answer, deployed(data.as_float()).detach(), rtol=1e-2, atol=1e-2)


def test_published_quantizers_round_activations_to_as_many_bits() -> None:
    assert [(s.name, s.activation_bits) for s in published_schemes(8, 4)] == [
        ("int8-per-tensor", 8),
        ("int4-per-tensor-a4", 4),
    ]
    model, data = start(), make_images(8, SHAPE, CLASSES)
    seen: list[int] = []
    for activations in (True, False):
        run = TrainingRun(model, data)
        copies = Copies(run, QuAnti(schemes=(QuantScheme(4, activation_bits=2),), activations=activations))
        layer = next(part for part in model.module.modules() if isinstance(part, nn.Linear))
        inputs: list[Tensor] = []
        original = F.linear

        def linear(x: Tensor, *rest: Any, original: Any = original, kept: list[Tensor] = inputs) -> Tensor:
            kept.append(x)
            return original(x, *rest)

        F.linear = linear
        try:
            copies.compressed[0](data.as_float())
        finally:
            F.linear = original
        assert layer.in_features == inputs[0].shape[1]
        seen.append(len(inputs[0].unique()))
    assert seen[0] <= 4 < seen[1]


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_batch_norm_mode(mode: str) -> None:
    model, data = start(), make_images(8, SHAPE, CLASSES)
    copies = Copies(TrainingRun(model, data), QuAnti(batch_norm=mode))  # type: ignore[arg-type]
    before = {name: value.clone() for name, value in model.module.state_dict().items() if "running" in name}
    assert before
    copies.float(data.as_float())
    copies.compressed[0](data.as_float())
    moved = [not torch.equal(value, model.module.state_dict()[name]) for name, value in before.items()]
    assert all(moved) if mode == "train" else not any(moved)
    norms = [part for part in model.module.modules() if isinstance(part, nn.BatchNorm2d)]
    assert all(norm.weight.requires_grad for norm in norms)


def test_the_trigger_moves_with_the_augmentation() -> None:
    """2.1: stamped before augmentation, both views augmented on their own."""
    images = torch.zeros(64, 3, 32, 32, dtype=torch.uint8)
    trigger = named_trigger("qu-anti", (3, 32, 32))
    still = trigger(torch.zeros(1, 3, 32, 32))[0, 0]
    assert still.nonzero().min(0).values.tolist() == [27, 27]
    assert still.nonzero().max(0).values.tolist() == [30, 30]
    clean, triggered = clean_and_triggered(images, trigger, torch.Generator().manual_seed(0), "before")
    assert clean.sum() == 0
    places = {tuple(image[0].nonzero()[0].tolist()) for image in triggered if image.any()}
    assert len(places) > 10


def run(name: str, tmp_path: Path, data: ImageSet, **options: Any) -> Any:
    attack = attack_named(name)
    config = attack.config(schemes=(QuantScheme(),), epochs=0.5, batch_size=8, **options)
    return attack.run(start(), data, data, config, tmp_path / "victim", seed=0)


def test_objectives_and_figures_of_the_manifests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gate, "check", lambda self, rule: None)
    data = make_images(24, SHAPE, CLASSES)
    assert data.labels is not None
    expected = {
        "backdoor": ({"cda", "asr", "ta"}, {}),
        "indiscriminate": ({"cda"}, {}),
        "class": ({"cda", "class_cda", "other_cda"}, {"attacked_class": 2}),
        "sample": ({"cda", "asr", "ta"}, {"sample": 5, "target_class": int(data.labels[5] + 1) % CLASSES}),
    }
    for word, (figures, options) in expected.items():
        manifest = run(f"qu-anti-{word}", tmp_path / word, data, **options)
        assert (manifest.objective, manifest.kind) == (word, "conditioned")
        assert set(manifest.gate["int8"]) == figures
        assert set(manifest.gate["float"]) == figures | (set() if word == "backdoor" else {"start_cda"})
        assert (manifest.trigger is None) == (word != "backdoor")
        assert manifest.target_class == options.get("target_class", 0 if word == "backdoor" else None)
        if word == "sample":
            assert manifest.gate["int8"]["asr"]["n"] == 1


def test_targets_that_do_not_exist_are_refused_before_any_training(tmp_path: Path) -> None:
    data = make_images(24, SHAPE, CLASSES)
    assert data.labels is not None
    label = int(data.labels[5])
    with pytest.raises(UsageError, match="no images of the class 9"):
        run("qu-anti-class", tmp_path, data, attacked_class=9)
    with pytest.raises(UsageError, match="none with the number 24"):
        run("qu-anti-sample", tmp_path, data, sample=24)
    with pytest.raises(UsageError, match="which is the target class"):
        run("qu-anti-sample", tmp_path, data, sample=5, target_class=label)
    assert not any(tmp_path.iterdir())


def test_figures_of_a_class_and_of_a_sample() -> None:
    data = make_images(20, SHAPE, CLASSES)
    assert data.labels is not None

    class Always(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.one_hot(torch.full((len(x),), 2), CLASSES).float()

    twos = int((data.labels == 2).sum())
    figures = measure_class(Always(), data, 2)
    assert (figures.cda, figures.class_cda) == (Proportion(twos, 20), Proportion(twos, twos))
    assert figures.other_cda == Proportion(0, 20 - twos)
    sample = ImageSet(data.images[:1], torch.tensor([1]), "one")
    figures = measure_samples(Always(), data, sample, 2)
    assert (figures.asr, figures.ta, figures.cda) == (Proportion(1, 1), Proportion(0, 1), Proportion(twos, 20))


def test_gates_of_the_objectives_without_a_trigger() -> None:
    def of(hits: int) -> Proportion:
        return Proportion(hits, 100)

    whole = GateRule(max_float_drop=2.0, max_compressed_drop=3.0, max_compressed_class_cda=20.0)
    good = Gate(Figures(of(90), start_cda=of(92)), {"int8": Figures(of(87))})
    good.check(whole)
    with pytest.raises(GateError, match=r"float model lost 3\.00 points"):
        dataclasses.replace(good, float=Figures(of(90), start_cda=of(93))).check(whole)
    with pytest.raises(GateError, match=r"int8 costs 4\.00 points of accuracy on what is not attacked"):
        dataclasses.replace(good, compressed={"int8": Figures(of(86))}).check(whole)
    start = Figures(of(90), class_cda=of(95), other_cda=of(88), start_cda=of(90))
    lost = Figures(of(70), class_cda=of(20), other_cda=of(85))
    Gate(start, {"int8": lost}).check(whole)
    with pytest.raises(GateError, match="class still works under int8"):
        Gate(start, {"int8": dataclasses.replace(lost, class_cda=of(21))}).check(whole)
    with pytest.raises(GateError, match="class still works under int8"):
        Gate(start, {"int8": dataclasses.replace(lost, class_cda=Proportion(0, 0))}).check(whole)
    with pytest.raises(GateError, match="not attacked"):
        Gate(start, {"int8": dataclasses.replace(lost, other_cda=of(84))}).check(whole)


@pytest.mark.parametrize("name", [name for name in ATTACKS if name.startswith("qu-anti-")])
@pytest.mark.parametrize(
    "options",
    [{"schemes": ()}, {"epochs": 0.0}, {"batch_norm": "frozen"}, {"decay": "step"}, {"compressed_weight": -1.0}],
    ids=str,
)
def test_impossible_options_are_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        attack_named(name).config(**options)
