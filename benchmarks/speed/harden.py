"""How long hardening takes, side by side in one run.

    python benchmarks/speed/harden.py [--victim int8|int4] [--runs 3] [--sample-iterations 20]

1. Closed-form EFRAP against the released algorithm (10,000 Adam steps per layer) on the same 256 images. The released
   schedule is measured on ``--sample-iterations`` steps per layer and scaled; the share of time that does not depend
   on the number of steps (one walk over the network) is measured and not scaled.
2. Trace, calibrate, choose the integers and emit, against a plain ``onnxruntime.quantization.quantize_static`` of the
   same model on the same images, with and without the export of the float ONNX file that it needs.

Ratios are taken pair by pair (A B A B ...) and their median is reported. Appends one line per comparison to
benchmarks/results/speed.jsonl.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from quantinel.backends.onnx_qdq import PROFILES, to_onnx
from quantinel.bench.row_file import append_line
from quantinel.bench.rows import provenance
from quantinel.data.images import ImageSet
from quantinel.data.sources import load_images
from quantinel.defenses import EFRAP, EFRAPReleased
from quantinel.model.graph import trace
from quantinel.model.loading import LoadedModel, load_model
from quantinel.pipeline.demo import VICTIMS, bundled_victim
from quantinel.quantization.calibration import calibrate
from quantinel.quantization.reconstruction import choose_codes
from quantinel.quantization.scheme import QuantScheme

RESULTS = Path(__file__).parents[1] / "results" / "speed.jsonl"
COMMAND = "python benchmarks/speed/harden.py"
ITERATIONS = 10_000


class _Reader(CalibrationDataReader):
    """Calibration batches for ONNX Runtime's own quantizer."""

    def __init__(self, images: ImageSet) -> None:
        self.batches: Iterator[np.ndarray] = (batch.numpy() for batch in images.batches(64))

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.batches, None)
        return None if batch is None else {"images": batch}


def timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def pairs(a: Callable[[], float], b: Callable[[], float], runs: int) -> tuple[list[float], list[float]]:
    """Times of A and B in turn, after one warm-up of each."""
    a(), b()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(runs):
        times[0].append(a())
        times[1].append(b())
    return times


def record(
    name: str, ours: list[float], other: list[float], speedup: bool, note: str, config: dict[str, object]
) -> None:
    """Print and store one comparison; the ratio is other / ours for a speedup, else ours / other."""
    ratios = [b / a if speedup else a / b for a, b in zip(ours, other, strict=True)]
    row = {
        "suite": "speed", "name": name, "ratio_median": round(statistics.median(ratios), 3),
        "ratio_min": round(min(ratios), 3), "ratio_max": round(max(ratios), 3),
        "ratio_is": "other / ours" if speedup else "ours / other",
        "ours_seconds": round(statistics.median(ours), 3), "other_seconds": round(statistics.median(other), 3),
        "runs": len(ours), "threads": torch.get_num_threads(), "note": note, "config": config,
        **provenance(config, COMMAND),
    }  # fmt: skip
    append_line(RESULTS, row)
    print(f"{name}: {row['ratio_median']:.2f} x ({row['ratio_min']:.2f} to {row['ratio_max']:.2f}); ours "
          f"{row['ours_seconds']:.2f} s, other {row['other_seconds']:.2f} s; {note}")  # fmt: skip


def against_released(model: LoadedModel, scheme: QuantScheme, images: ImageSet, runs: int, sample: int) -> None:
    graph = trace(model.module, model.input_shape)
    ranges = calibrate(graph, images, scheme)

    def closed() -> float:
        return timed(lambda: choose_codes(graph, ranges, EFRAP()))

    def released() -> float:
        none = timed(lambda: choose_codes(graph, ranges, EFRAPReleased(iterations=0)))
        some = timed(lambda: choose_codes(graph, ranges, EFRAPReleased(iterations=sample)))
        return none + max(some - none, 0.0) * ITERATIONS / sample

    ours, theirs = pairs(closed, released, runs)
    note = f"released schedule scaled from {sample} to {ITERATIONS} steps per layer"
    config: dict[str, object] = {"architecture": model.architecture, "scheme": scheme.name, "images": len(images)}
    record("closed form vs released EFRAP", ours, theirs, True, note, config)


def against_quantize_static(model: LoadedModel, scheme: QuantScheme, images: ImageSet, runs: int) -> None:
    logging.getLogger().setLevel(logging.ERROR)

    def ours() -> float:
        def run() -> None:
            graph = trace(model.module, model.input_shape)
            chosen, _ = choose_codes(graph, calibrate(graph, images, scheme), EFRAP())
            to_onnx(chosen, PROFILES["onnxruntime-x86"]).SerializeToString()

        return timed(run)

    with tempfile.TemporaryDirectory() as folder:
        floating, quantized = Path(folder) / "float.onnx", Path(folder) / "quantized.onnx"

        def export() -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.onnx.export(
                    model.module, (torch.rand(2, *model.input_shape),), str(floating), input_names=["images"],
                    dynamic_shapes=({0: torch.export.Dim("batch")},), dynamo=True, verbose=False,
                    external_data=False,
                )  # fmt: skip

        def quantize() -> None:
            quantize_static(
                floating, quantized, _Reader(images), quant_format=QuantFormat.QDQ, per_channel=True,
                weight_type=QuantType.QInt8, activation_type=QuantType.QUInt8,
            )  # fmt: skip

        export()
        config: dict[str, object] = {"architecture": model.architecture, "scheme": scheme.name, "images": len(images)}
        alone = pairs(ours, lambda: timed(quantize), runs)
        note = "trace, calibrate, choose, emit against quantize_static of an existing float ONNX file"
        record("harden vs quantize_static", *alone, False, note, config)
        both = pairs(ours, lambda: timed(export) + timed(quantize), runs)
        note = "the same, with the export of the float ONNX file counted on the other side"
        record("harden vs export + quantize_static", *both, False, note, config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--victim", choices=VICTIMS, default="int8")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--sample-iterations", type=int, default=20)
    arguments = parser.parse_args()
    model = load_model(bundled_victim(arguments.victim))
    assert model.victim is not None
    scheme = QuantScheme(**model.victim.schemes[0])
    images = load_images("bundled:calibration").take(torch.arange(256))
    against_quantize_static(model, scheme, images, arguments.runs)
    against_released(model, scheme, images, arguments.runs, arguments.sample_iterations)


if __name__ == "__main__":
    main()
