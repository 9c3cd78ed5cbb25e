"""How far do codes, accuracy and attack success depend on the processor's instructions?

    python benchmarks/instruction_sets.py --data cifar10:DIR [--method invariant ...] VICTIM ...

Every victim is hardened twice on its own grid, by two processes that differ in the instruction set that the libraries
may use alone: all that the processor has, and AVX2. The problem is the same in both; products of float32 are summed in
another order. What differs between the two is the part of any figure that belongs to no method.

Calibration is on 256 bundled images, evaluation on the test images of DATA, simulated. Appends a row per victim and
method to benchmarks/results/instruction-sets.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from quantinel.backends.verification import simulated_logits
from quantinel.bench.row_file import append_line
from quantinel.bench.rows import provenance
from quantinel.data.sources import load_images
from quantinel.defenses import rounding_method
from quantinel.model.graph import trace
from quantinel.model.loading import load_model
from quantinel.pipeline.measure import evaluation_row, run_variant, stamp
from quantinel.quantization.calibration import calibrate
from quantinel.quantization.reconstruction import choose_codes
from quantinel.quantization.scheme import parse_scheme

RESULTS = Path(__file__).parent / "results" / "instruction-sets.jsonl"
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}


def measure_here(source: str, method: str, data: str, codes: Path) -> dict[str, Any]:
    """Harden and evaluate a victim; writes its codes."""
    torch.set_num_threads(1)
    model, images = load_model(source), load_images(data, split="test")
    assert model.victim is not None
    scheme = parse_scheme("int{weight_bits}".format(**model.victim.schemes[0]))
    calibration = load_images("bundled:calibration").take(torch.arange(256))
    graph = trace(model.module, model.input_shape)
    hardened, _ = choose_codes(graph, calibrate(graph, calibration, scheme), rounding_method(method))
    torch.save(hardened.codes, codes)
    network, trigger, target = hardened.simulate(), model.trigger(), model.victim.target_class
    assert trigger is not None
    found = run_variant(
        "hardened", "simulated", lambda x: simulated_logits(network, x), images, stamp(images, trigger), target
    )
    row = evaluation_row(found, found)
    assert row.cda is not None
    assert row.asr is not None
    rates = {"cda": row.cda.model_dump(), "asr": row.asr.model_dump()}
    return {"scheme": scheme.name, "data": images.name, **rates}


def measure_apart(source: str, method: str, data: str, codes: Path, restricted: bool) -> dict[str, Any]:
    """The same in a process of its own, with AVX2 alone if ``restricted``."""
    command = [sys.executable, __file__, "--data", data, "--method", method, "--child", str(codes), source]
    environment = {**os.environ, **(AVX2 if restricted else {})}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def compared(source: str, method: str, data: str) -> dict[str, Any]:
    """One row."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("own.pt", "avx2.pt")]
        own, other = (
            measure_apart(source, method, data, file, restricted)
            for file, restricted in zip(files, (False, True), strict=True)
        )
        codes = [torch.load(file, weights_only=True) for file in files]
    differ = sum(int((codes[0][name] != codes[1][name]).sum()) for name in codes[0])
    return {
        "victim": source.rsplit("/", 1)[-1].removeprefix("bundled:").replace("_", "-"),
        "method": method,
        "scheme": own["scheme"],
        "codes": sum(part.numel() for part in codes[0].values()),
        "codes_differ": differ,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "own": {name: own[name] for name in ("cda", "asr")},
        "avx2": {name: other[name] for name in ("cda", "asr")},
        "data": own["data"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("victims", nargs="+", metavar="VICTIM")
    parser.add_argument("--data", required=True)
    parser.add_argument("--method", action="append", help="default: invariant")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    methods = arguments.method or ["invariant"]
    if arguments.child is not None:
        print(json.dumps(measure_here(arguments.victims[0], methods[0], arguments.data, arguments.child)))
        return
    command = "python benchmarks/instruction_sets.py --data cifar10:DIR"
    for source in arguments.victims:
        for method in methods:
            row = compared(source, method, arguments.data)
            config = {name: row[name] for name in ("victim", "method", "scheme", "data", "instructions")}
            append_line(RESULTS, {**row, **provenance(config, f"{command} --method {method} {source}")})
            print(json.dumps(row))


if __name__ == "__main__":
    main()
