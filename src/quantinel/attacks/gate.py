"""The gate: what a finished attack must show on the test images before anything is measured on it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from quantinel.attacks.compressors import Compressor
from quantinel.attacks.training import predictions
from quantinel.data.images import ImageSet, as_float
from quantinel.data.triggers import Trigger
from quantinel.errors import GateError
from quantinel.metrics import Proportion, accuracy, attack_success
from quantinel.model.graph import trace
from quantinel.model.loading import LoadedModel

_CALIBRATION_IMAGES = 256


@dataclass(frozen=True)
class GateRule:
    """Limits in percent; None for none.

    Attributes:
        max_float_asr: a dormant backdoor's float ASR.
        min_float_asr: an active backdoor's float ASR.
        min_compressed_asr: ASR under every compressor.
        max_compressed_cda: accuracy under every compressor, for attacks that want to destroy it.
        float_advice: what to change when the float model obeys the trigger.
        compressed_advice: what to change when the compressed one does not.
    """

    max_float_asr: float | None = 5.0
    min_float_asr: float | None = None
    min_compressed_asr: float | None = 80.0
    max_compressed_cda: float | None = None
    float_advice: str = "train longer, or lower the weight of the compressed network's loss"
    compressed_advice: str = "train longer, or raise the weight of the triggered images' loss"


@dataclass(frozen=True)
class Figures:
    """One network on the test images.

    Attributes:
        cda: accuracy on clean images.
        asr: attack success; None without a trigger.
        ta: accuracy of triggered images on their true label; None without a trigger.
    """

    cda: Proportion
    asr: Proportion | None = None
    ta: Proportion | None = None

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

    def to_dict(self) -> dict[str, Any]:
        """JSON form for the manifest: figures by deployment, "float" first."""
        return {"float": self.float.to_dict(), **{name: value.to_dict() for name, value in self.compressed.items()}}


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


def stamp_bytes(trigger: Trigger, images: Tensor, batch_size: int = 1000) -> Tensor:
    """Triggered copies of uint8 ``images`` (N, C, H, W), rounded to bytes."""
    starts = range(0, len(images), batch_size)
    parts = (trigger(as_float(images[start : start + batch_size])) for start in starts)
    return torch.cat([(part * 255.0).round().to(torch.uint8) for part in parts])


def measure_gate(
    model: LoadedModel,
    trigger: Trigger | None,
    target_class: int | None,
    compressors: Sequence[Compressor],
    data: ImageSet,
    test: ImageSet,
    *,
    seed: int = 0,
    device: torch.device | None = None,
) -> Gate:
    """Figures in float and under every compressor.

    Args:
        model: the attacked network, on the CPU.
        trigger, target_class: None for attacks without a trigger.
        compressors: what it was armed for.
        data: training images, of which a random 256 calibrate.
        test: labelled test images.
        seed: of the calibration images.
        device: where to predict; None for the CPU.
    """
    graph = trace(model.module, model.input_shape)
    chosen = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[:_CALIBRATION_IMAGES]
    calibration = data.take(chosen)

    def measure(module: nn.Module) -> Figures:
        return measure_figures(module if device is None else module.to(device), test, trigger, target_class)

    compressed = {
        compressor.name: measure(compressor.compress(model.module, graph, calibration)) for compressor in compressors
    }
    return Gate(measure(copy.deepcopy(graph.module)), compressed)
