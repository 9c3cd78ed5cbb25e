"""Float, nearest and hardened models on the complete CIFAR-10 test set, through ONNX Runtime on the emitted file.

    python benchmarks/hardening.py --cifar10 FOLDER [--clean resnet20_cifar10.safetensors] [--released]

Cells: the bundled victims and the clean pretrained ResNet-20, each at 8 and 4 bit. Calibration: the first 256 of the
bundled calibration images (training split). With --released, the released EFRAP algorithm runs on the victims too, at
500 steps of 2e-2 per layer instead of 10,000 of 1e-3 (reported to give 99.86 % of the same codes): minutes.
Appends rows to benchmarks/results/hardening.jsonl.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from quantinel.audit.report import Report
from quantinel.bench.rows import ResultRow, append_rows, measured, provenance
from quantinel.data.cifar10 import load_cifar10
from quantinel.data.sources import load_images
from quantinel.data.triggers import PatchTrigger, trigger_from_dict
from quantinel.defenses import EFRAP, EFRAPReleased
from quantinel.model.loading import LoadedModel, load_model
from quantinel.pipeline.demo import VICTIMS, bundled_victim
from quantinel.pipeline.harden import HardenOptions, harden
from quantinel.quantization.reconstruction import RoundingMethod
from quantinel.quantization.scheme import parse_scheme

RESULTS = Path(__file__).parent / "results" / "hardening.jsonl"
CALIBRATION_IMAGES = 256
RELEASED = EFRAPReleased(iterations=500, learning_rate=0.02)


def rows(report: Report, model: LoadedModel, attack: str, command: str) -> list[ResultRow]:
    """Three rows of one run: float, nearest, hardened."""
    floating = report.evaluation[0]
    layers = report.layers
    weights = sum(torch.Size(layer.shape).numel() for layer in layers)
    result = []
    for row in report.evaluation:
        hardened = row.variant == "hardened"
        extra: dict[str, float | int | str] = {}
        if hardened:
            extra = {
                "flips_percent": round(100 * sum(torch.Size(x.shape).numel() * x.changed for x in layers) / weights, 3),
                "layers": report.verification.layers,
                "layers_equal": report.verification.layers_equal,
                "integer_layers": report.verification.integer_layers,
                "agreement_percent": round(report.verification.agreement.percent or 0.0, 3),
                "max_difference_steps": round(report.verification.max_difference_steps, 3),
                "verdict": report.verdict,
            }
        result.append(
            ResultRow(
                suite="hardening", attack=attack, scheme=report.request["scheme"], compressor="static-ptq",
                defense={"float": "none", "nearest": "nearest", "hardened": report.request["rounding"]}[row.variant],
                architecture=str(model.architecture), data="cifar10", seed=report.request["seed"],
                seconds=report.seconds["choose integers"] if hardened else None, extra=extra,
                **measured(row, floating), **provenance(report.request, command),
            )
        )  # fmt: skip
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cifar10", type=Path, required=True)
    parser.add_argument("--clean", type=Path, help="pretrained ResNet-20 without a backdoor")
    parser.add_argument("--released", action="store_true", help="also run the released algorithm on the victims")
    arguments = parser.parse_args()
    test = load_cifar10(arguments.cifar10)
    calibration = load_images("bundled:calibration").take(torch.arange(CALIBRATION_IMAGES))
    cells: list[tuple[LoadedModel, str, str, RoundingMethod]] = []
    for name in VICTIMS:
        victim = load_model(bundled_victim(name))
        cells.append((victim, f"pq-backdoor ({name} victim)", name, EFRAP()))
        if arguments.released:
            cells.append((victim, f"pq-backdoor ({name} victim)", name, RELEASED))
    if arguments.clean is not None:
        clean = load_model(arguments.clean, arch="resnet20")
        cells += [(clean, "none", scheme, EFRAP()) for scheme in ("int8", "int4")]
    command = "python benchmarks/hardening.py --cifar10 CIFAR10 --clean RESNET20 --released"
    for model, attack, scheme, rounding in cells:
        trigger = trigger_from_dict(model.victim.trigger) if model.victim else PatchTrigger.pq()
        with tempfile.TemporaryDirectory() as folder:
            report = harden(
                model, test, Path(folder) / "out", HardenOptions(scheme=parse_scheme(scheme), rounding=rounding),
                calibration=calibration, trigger=trigger,
                target_class=model.victim.target_class if model.victim else 0,
            )  # fmt: skip
        new = rows(report, model, attack, command)
        append_rows(RESULTS, new)
        for row in new:
            print(f"{row.attack:28} {row.scheme:5} {row.defense:8} CDA {row.cda:6.2f} ASR {row.asr:6.2f} {row.extra}")


if __name__ == "__main__":
    main()
