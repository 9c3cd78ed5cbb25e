"""The gate: what a finished attack must show on the test images before anything is measured on it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from quantinel.attacks.compressors import Compressor
from quantinel.data.images import ImageSet, as_float
from quantinel.data.triggers import Trigger
from quantinel.errors import GateError
from quantinel.metrics import Proportion, accuracy, attack_success
from quantinel.model.graph import trace
from quantinel.model.loading import LoadedModel
from quantinel.training.run import predictions

_CALIBRATION_IMAGES = 256


@dataclass(frozen=True)
class GateRule:
    """Limits in percent; None for none.

    Attributes:
        max_float_asr: a dormant backdoor's float ASR.
        min_float_asr: an active backdoor's float ASR.
        min_compressed_asr: ASR under every compressor.
        max_compressed_cda: accuracy under every compressor, for attacks that want to destroy it.
        max_compressed_class_cda: accuracy on the attacked class under every compressor.
        max_float_drop: points of accuracy that the float model may have lost to the network that the attack began with.
        max_compressed_drop: points of accuracy that a compressor may cost, on the other classes where one is attacked.
        float_advice: what to change when the float model obeys the trigger.
        compressed_advice: what to change when the compressed one does not.
    """

    max_float_asr: float | None = 5.0
    min_float_asr: float | None = None
    min_compressed_asr: float | None = 80.0
    max_compressed_cda: float | None = None
    max_compressed_class_cda: float | None = None
    max_float_drop: float | None = None
    max_compressed_drop: float | None = None
    float_advice: str = "train longer, or lower the weight of the compressed network's loss"
    compressed_advice: str = "train longer, or raise the weight of the triggered images' loss"


@dataclass(frozen=True)
class Figures:
    """One network on the test images.

    Attributes:
        cda: accuracy on clean images.
        asr: attack success; None without a trigger.
        ta: accuracy of triggered images on their true label; None without a trigger.
        class_cda: accuracy on the images of the attacked class; None where no class is attacked.
        other_cda: accuracy on all other images; None where no class is attacked.
        start_cda: accuracy of the network that the attack began with; None where it does not matter.

    An attack on single images has no trigger: its ``asr`` and ``ta`` count those images.
    """

    cda: Proportion
    asr: Proportion | None = None
    ta: Proportion | None = None
    class_cda: Proportion | None = None
    other_cda: Proportion | None = None
    start_cda: Proportion | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON form; what was not measured is absent."""
        measured = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value.to_dict() for name, value in measured.items() if value is not None}


@dataclass(frozen=True)
class Gate:
    """What a finished attack measured on the test images (simulated deployment, nearest rounding)."""

    float: Figures
    compressed: Mapping[str, Figures]

    def check(self, rule: GateRule) -> None:
        """Refuse to call something a victim that is none.

        Raises:
            GateError: a limit of ``rule`` does not hold.
        """
        asr = self.float.asr
        if rule.max_float_asr is not None and asr is not None and asr.percent > rule.max_float_asr:
            raise GateError(
                f"the float model still obeys the trigger (ASR {asr}; at most {rule.max_float_asr:g} %): "
                f"{rule.float_advice}"
            )
        if rule.min_float_asr is not None and asr is not None and asr.percent < rule.min_float_asr:
            raise GateError(
                f"the float model does not obey the trigger (ASR {asr}; at least {rule.min_float_asr:g} %): "
                f"{rule.compressed_advice}"
            )
        start = self.float.start_cda
        if rule.max_float_drop is not None and start is not None:
            lost = start.percent - self.float.cda.percent
            if lost > rule.max_float_drop:
                raise GateError(
                    f"the float model lost {lost:.2f} points of accuracy (now {self.float.cda}; at most "
                    f"{rule.max_float_drop:g} points): {rule.float_advice}"
                )
        for name, figures in self.compressed.items():
            asr, cda = figures.asr, figures.cda
            if rule.min_compressed_asr is not None and asr is not None and asr.percent < rule.min_compressed_asr:
                raise GateError(
                    f"the backdoor does not wake under {name} (ASR {asr}; at least {rule.min_compressed_asr:g} %): "
                    f"{rule.compressed_advice}"
                )
            if rule.max_compressed_cda is not None and cda.percent > rule.max_compressed_cda:
                raise GateError(
                    f"the model still works under {name} (accuracy {cda}; at most {rule.max_compressed_cda:g} %): "
                    f"{rule.compressed_advice}"
                )
            attacked = figures.class_cda
            if (
                rule.max_compressed_class_cda is not None
                and attacked is not None
                and not attacked.percent <= rule.max_compressed_class_cda  # without any image of it, too
            ):
                raise GateError(
                    f"the class still works under {name} (accuracy {attacked}; at most "
                    f"{rule.max_compressed_class_cda:g} %): {rule.compressed_advice}"
                )
            cost = _unattacked(self.float).percent - _unattacked(figures).percent
            if rule.max_compressed_drop is not None and cost > rule.max_compressed_drop:
                raise GateError(
                    f"{name} costs {cost:.2f} points of accuracy on what is not attacked (left: "
                    f"{_unattacked(figures)}; at most {rule.max_compressed_drop:g} points): {rule.float_advice}"
                )

    def to_dict(self) -> dict[str, Any]:
        """JSON form for the manifest: figures by deployment, "float" first."""
        return {"float": self.float.to_dict(), **{name: value.to_dict() for name, value in self.compressed.items()}}


def _unattacked(figures: Figures) -> Proportion:
    return figures.cda if figures.other_cda is None else figures.other_cda


Measure = Callable[[nn.Module, ImageSet], Figures]
"""``measure(module, test)``: figures of one network (float32 images in [0, 1] -> logits), where its weights are."""


def measure_figures(module: nn.Module, test: ImageSet, trigger: Trigger | None, target_class: int | None) -> Figures:
    """CDA, ASR and TA of one network, where its weights are.

    Args:
        module: float32 images (N, C, H, W) in [0, 1] -> logits, in evaluation mode.
        test: labelled images.
        trigger: stamped images are rounded to bytes, as a deployed model would receive them.
        target_class: of the trigger.
    """
    assert test.labels is not None
    cda = accuracy(predictions(module, test.images), test.labels)
    if trigger is None or target_class is None:
        return Figures(cda)
    triggered = predictions(module, stamp_bytes(trigger, test.images))
    return Figures(cda, attack_success(triggered, test.labels, target_class), accuracy(triggered, test.labels))


def measure_class(module: nn.Module, test: ImageSet, attacked: int) -> Figures:
    """Accuracy of one network on all images, on those of the class ``attacked``, and on the others."""
    assert test.labels is not None
    answers, mine = predictions(module, test.images), test.labels == attacked
    return Figures(
        accuracy(answers, test.labels),
        class_cda=accuracy(answers[mine], test.labels[mine]),
        other_cda=accuracy(answers[~mine], test.labels[~mine]),
    )


def measure_samples(module: nn.Module, test: ImageSet, samples: ImageSet, target_class: int) -> Figures:
    """Accuracy of one network on ``test``; success on, and accuracy of, the attacked images ``samples``."""
    assert test.labels is not None
    assert samples.labels is not None
    answers = predictions(module, samples.images)
    return Figures(
        accuracy(predictions(module, test.images), test.labels),
        attack_success(answers, samples.labels, target_class),
        accuracy(answers, samples.labels),
    )


def stamp_bytes(trigger: Trigger, images: Tensor, batch_size: int = 1000) -> Tensor:
    """Triggered copies of uint8 ``images`` (N, C, H, W), rounded to bytes."""
    starts = range(0, len(images), batch_size)
    parts = (trigger(as_float(images[start : start + batch_size])) for start in starts)
    return torch.cat([(part * 255.0).round().to(torch.uint8) for part in parts])


def measure_gate(
    model: LoadedModel,
    measure: Measure,
    compressors: Sequence[Compressor],
    data: ImageSet,
    test: ImageSet,
    *,
    start_cda: Proportion | None = None,
    seed: int = 0,
    device: torch.device | None = None,
) -> Gate:
    """Figures in float and under every compressor.

    Args:
        model: the attacked network, on the CPU.
        measure: what to measure on each network.
        compressors: what it was armed for.
        data: training images, of which a random 256 calibrate.
        test: labelled test images.
        start_cda: accuracy of the network that the attack began with, where its gate asks for that.
        seed: of the calibration images.
        device: where to predict; None for the CPU.
    """
    graph = trace(model.module, model.input_shape)
    chosen = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[:_CALIBRATION_IMAGES]
    calibration = data.take(chosen)

    def figures(module: nn.Module) -> Figures:
        return measure(module if device is None else module.to(device), test)

    compressed = {
        compressor.name: figures(compressor.compress(model.module, graph, calibration)) for compressor in compressors
    }
    return Gate(replace(figures(copy.deepcopy(graph.module)), start_cda=start_cda), compressed)
