"""How long the data-free tests take on a safetensors file, against reading and hashing it, and how much memory.

    python benchmarks/speed/forensics.py [--megabytes 500] [--scheme int8] [--runs 5]

Makes a file of natural weights (attention and feed-forward matrices, a convolution, and one tensor of a single long
row), then runs both sides in turn in fresh processes (A B A B ...): `quantinel.detectors.file_forensics` on one,
SHA-256 in blocks on the other. Each process times the work alone, without its imports, in wall and processor time; the
file is in the page cache on both sides. Peak memory is that of the whole process, imports included (Linux only).
Appends to benchmarks/results/speed.jsonl.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from quantinel.bench.row_file import append_line
from quantinel.bench.rows import provenance

RESULTS = Path(__file__).parents[1] / "results" / "speed.jsonl"

TIMED = """
import json, sys, time
from pathlib import Path
import torch
from quantinel.detectors.file_forensics import examine_file
from quantinel.files import sha256_file
from quantinel.quantization.scheme import parse_scheme
torch.set_num_threads(1)
path, scheme, side = Path(sys.argv[1]), parse_scheme(sys.argv[2]), sys.argv[3]
wall, processor = time.perf_counter(), time.process_time()
found = examine_file(path, scheme) if side == "ours" else sha256_file(path)
times = time.perf_counter() - wall, time.process_time() - processor
peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024  # of this program alone
print(json.dumps([*times, peak, found.weights if side == "ours" else 0]))
"""


def make_file(path: Path, megabytes: int) -> None:
    """Tensors of together about ``megabytes``, drawn from a normal distribution."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "stem.weight": torch.randn(512, 256, 3, 3, generator=generator),
        "position": torch.randn(1, 4_000_000, generator=generator),
    }
    block, left = 0, megabytes * 250_000 - sum(tensor.numel() for tensor in tensors.values())
    while left > 0:
        for name, shape in (("attention", (1536, 1536)), ("up", (2560, 1536)), ("down", (1536, 2560))):
            tensors[f"{block}.{name}.weight"] = torch.randn(*shape, generator=generator) * 0.02
            left -= shape[0] * shape[1]
        block += 1
    save_file(tensors, path)


def timed(path: Path, scheme: str, side: str) -> list[float]:
    """[wall seconds, processor seconds, peak MiB, weights] of one process."""
    command = [sys.executable, "-c", TIMED, str(path), scheme, side]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    times: list[float] = json.loads(done.stdout)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--scheme", default="int8")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.safetensors")
        make_file(path, arguments.megabytes)
        timed(path, arguments.scheme, "hash")
        ours, other = [], []
        for _ in range(arguments.runs):
            ours.append(timed(path, arguments.scheme, "ours"))
            other.append(timed(path, arguments.scheme, "hash"))
        size = path.stat().st_size
    wall = [mine[0] / theirs[0] for mine, theirs in zip(ours, other, strict=True)]
    processor = [mine[1] / theirs[1] for mine, theirs in zip(ours, other, strict=True)]
    config = {"megabytes": arguments.megabytes, "scheme": arguments.scheme}
    command = f"python benchmarks/speed/forensics.py --megabytes {arguments.megabytes} --scheme {arguments.scheme}"
    row = {
        "suite": "speed",
        "name": "file forensics vs read and hash",
        "ratio_median": round(statistics.median(wall), 3),
        "ratio_min": round(min(wall), 3),
        "ratio_max": round(max(wall), 3),
        "processor_ratio_median": round(statistics.median(processor), 3),
        "ratio_is": "ours / other",
        "ours_seconds": round(statistics.median(run[0] for run in ours), 3),
        "other_seconds": round(statistics.median(run[0] for run in other), 3),
        "peak_mib": round(max(run[2] for run in ours), 1),
        "other_peak_mib": round(max(run[2] for run in other), 1),
        "bytes": size,
        "weights": int(ours[0][3]),
        "runs": arguments.runs,
        "threads": 1,
        "note": "fresh processes in turn, imports not timed, file in the page cache; peaks are of whole processes",
        "config": config,
        **provenance(config, f"{command} --runs {arguments.runs}"),
    }
    append_line(RESULTS, row)
    print(json.dumps(row, indent=1))


if __name__ == "__main__":
    main()
