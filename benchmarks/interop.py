"""Do other runtimes and tools keep the integers and the answers?

    python -m benchmarks.interop

Needs OpenVINO and qemu-user. Integers are floor or ceiling at random; ResNet-20 is the bundled int8 victim, the other
networks have random weights and BatchNorm statistics of the data.

1. OpenVINO on files of its profile (and, for comparison, of the default one) against ``simulate()``, 250 images.
2. ONNX Runtime on an emulated Haswell (AVX2, no VNNI) against ONNX Runtime on this CPU, 32 images.
3. ``onnxruntime.quantization.quantize_static`` on the purified float network: the share of codes that it reproduces.

Appends rows to benchmarks/results/interop.jsonl.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from tests.interop.emulation import QEMU, run_file
from tests.interop.networks import NETWORKS, network
from tests.interop.requantization import SETTINGS, export_purified, kept_percent, requantized

from quantinel.backends.onnx_qdq import PROFILES, to_onnx
from quantinel.backends.openvino_runtime import OpenVINOSession, openvino_name
from quantinel.backends.runtime import runtime_name
from quantinel.backends.verification import OutputComparison, compare_outputs, simulated_logits
from quantinel.bench.row_file import append_line
from quantinel.bench.rows import provenance
from quantinel.data.sources import load_images

RESULTS = Path(__file__).parent / "results" / "interop.jsonl"
COMMAND = "python -m benchmarks.interop"
EMULATED = 32


def record(runtime: str, architecture: str, profile: str, **figures: Any) -> None:
    """Print and store one row."""
    name, version = runtime.rsplit(" ", 1)
    cell = {"suite": "interop", "runtime": name, "runtime_version": version, "architecture": architecture,
            "profile": profile}  # fmt: skip
    row = {**cell, "trained": architecture == "resnet20", **figures, **provenance(cell, COMMAND)}
    append_line(RESULTS, row)
    print({**cell, **figures}, flush=True)


def compared(outputs: OutputComparison) -> dict[str, Any]:
    """Figures of a comparison, as fields of a row."""
    return {"n": outputs.agreement.n, "agreement_percent": outputs.agreement.percent,
            "max_difference_steps": round(outputs.max_steps, 3)}  # fmt: skip


def in_openvino(name: str) -> None:
    model, images = network(name)
    simulated = simulated_logits(model.simulate(), images.images)
    for profile, precision in (("openvino", "f32"), ("openvino", None), ("onnxruntime-x86", "f32")):
        session = OpenVINOSession(to_onnx(model, PROFILES[profile]).SerializeToString(), precision=precision)
        outputs = compare_outputs(session.logits(images.images), simulated, model.output_step)
        integer_layers = session.execution(model.layers).integer_layers
        record(
            openvino_name(), name, profile, reference="simulation", precision=precision or "of OpenVINO's choice",
            layers=len(model.layers), integer_layers=integer_layers, **compared(outputs),
        )  # fmt: skip


def without_vnni(name: str, folder: Path) -> None:
    model, images = network(name)
    some = images.images[:EMULATED]
    option = "session.x64quantprecision"
    for profile, extra in (("onnxruntime-x86", None), ("onnxruntime-x86", option), ("onnxruntime-avx2", None)):
        data = to_onnx(model, PROFILES[profile]).SerializeToString()
        native = run_file(data, some, folder, emulated=False)
        outputs = compare_outputs(run_file(data, some, folder, emulated=True, option=extra), native, model.output_step)
        record(
            runtime_name(), name, profile, reference="the same file on this CPU", cpu="qemu-x86_64 -cpu Haswell",
            session_option=extra, **compared(outputs),
        )  # fmt: skip


def quantized_again(name: str, folder: Path) -> None:
    model, _ = network(name)
    images = load_images("bundled:calibration", limit=64)
    floating = folder / "float.onnx"
    export_purified(model, floating)
    for setting in SETTINGS:
        kept = kept_percent(model, requantized(floating, images, setting))
        record(f"quantize_static of {runtime_name()}", name, "purified float", setting=setting,
               codes_kept_percent=round(kept, 3))  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for name in NETWORKS:
            in_openvino(name)
        for name in ("resnet20", "mobilenetv2_small", "vit_tiny", "odd") if QEMU else ():
            without_vnni(name, Path(folder))
        for name in ("resnet20", "mobilenetv2_small"):
            quantized_again(name, Path(folder))


if __name__ == "__main__":
    main()
