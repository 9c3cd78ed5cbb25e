"""The gate that a victim must pass, and the directory that it is written to."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from quantinel.attacks.training import predictions
from quantinel.data.images import ImageSet, as_float
from quantinel.data.triggers import PatchTrigger
from quantinel.errors import GateError
from quantinel.files import atomic_directory
from quantinel.metrics import Proportion, accuracy, attack_success
from quantinel.model.graph import trace
from quantinel.model.loading import LoadedModel
from quantinel.model.normalization import Normalized
from quantinel.model.victim import WEIGHTS_NAME, VictimManifest, write_manifest
from quantinel.quantization.calibration import calibrate
from quantinel.quantization.quantized_model import quantize_nearest
from quantinel.quantization.scheme import QuantScheme

MAX_FLOAT_ASR = 5.0
MIN_QUANTIZED_ASR = 80.0
_CALIBRATION_IMAGES = 256


@dataclass(frozen=True)
class Gate:
    """What a finished attack measured on the test images (simulated deployment, nearest rounding)."""

    float_cda: Proportion
    float_asr: Proportion
    quantized: Mapping[str, tuple[Proportion, Proportion]]

    def check(self) -> None:
        """Refuse to call something a victim that is none.

        Raises:
            GateError: the float model obeys the trigger, or a quantized one does not.
        """
        if self.float_asr.percent > MAX_FLOAT_ASR:
            raise GateError(
                f"the float model still obeys the trigger (ASR {self.float_asr}; at most {MAX_FLOAT_ASR:g} %): "
                "raise repair_steps or lower the radius"
            )
        for name, (_, asr) in self.quantized.items():
            if asr.percent < MIN_QUANTIZED_ASR:
                raise GateError(
                    f"the backdoor does not wake under {name} (ASR {asr}; at least {MIN_QUANTIZED_ASR:g} %): "
                    "raise plant_steps or trigger_weight"
                )

    def to_dict(self) -> dict[str, Any]:
        """JSON form for the manifest."""
        return {
            "float": {"cda": self.float_cda.to_dict(), "asr": self.float_asr.to_dict()},
            **{name: {"cda": cda.to_dict(), "asr": asr.to_dict()} for name, (cda, asr) in self.quantized.items()},
        }


def measure_gate(
    model: LoadedModel,
    trigger: PatchTrigger,
    target_class: int,
    schemes: Sequence[QuantScheme],
    data: ImageSet,
    test: ImageSet,
    seed: int,
) -> Gate:
    """CDA and ASR in float and after nearest rounding under every scheme.

    Args:
        model: the attacked network.
        trigger: its trigger.
        target_class: its target.
        schemes: the quantizers it was armed for.
        data: training images, of which a random 256 calibrate.
        test: labelled test images.
        seed: of the calibration images.
    """
    assert test.labels is not None
    labels = test.labels
    stamped = (trigger(as_float(test.images)) * 255.0).round().to(torch.uint8)

    def measure(module: nn.Module) -> tuple[Proportion, Proportion]:
        clean, triggered = predictions(module, test.images), predictions(module, stamped)
        return accuracy(clean, labels), attack_success(triggered, labels, target_class)

    graph = trace(model.module, model.input_shape)
    chosen = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[:_CALIBRATION_IMAGES]
    calibration = data.take(chosen)
    cda, asr = measure(graph.module)
    quantized = {
        scheme.name: measure(quantize_nearest(graph, calibrate(graph, calibration, scheme)).simulate())
        for scheme in schemes
    }
    return Gate(cda, asr, quantized)


def write_victim(
    output: Path,
    attack: str,
    model: LoadedModel,
    trigger: PatchTrigger,
    target_class: int,
    schemes: Sequence[QuantScheme],
    data: str,
    seed: int,
    config: Mapping[str, Any],
    gate: Gate,
    licence: str,
    overwrite: bool,
) -> VictimManifest:
    """Check the gate and write ``model.safetensors`` and ``victim.json``.

    Raises:
        GateError: the gate does not hold; nothing is written.
    """
    gate.check()
    network, mean, std = _without_normalisation(model)
    weights = save({name: tensor.detach().contiguous() for name, tensor in network.state_dict().items()})
    manifest = VictimManifest(
        attack=attack,
        architecture=str(model.architecture),
        num_classes=model.num_classes,
        input_shape=model.input_shape,
        mean=mean,
        std=std,
        trigger=trigger.to_dict(),
        target_class=target_class,
        schemes=[scheme.to_dict() for scheme in schemes],
        data=data,
        seed=seed,
        config=dict(config),
        gate=gate.to_dict(),
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        licence=licence,
    )
    with atomic_directory(output, overwrite) as folder:
        (folder / WEIGHTS_NAME).write_bytes(weights)
        write_manifest(folder, manifest)
    return manifest


def _without_normalisation(model: LoadedModel) -> tuple[nn.Module, tuple[float, ...], tuple[float, ...]]:
    """The named architecture inside the loaded module, and the normalisation around it."""
    channels = model.input_shape[0]
    if isinstance(model.module, Normalized):
        module = model.module
        return module.inner, tuple(module.mean.flatten().tolist()), tuple(module.std.flatten().tolist())
    return model.module, (0.0,) * channels, (1.0,) * channels
