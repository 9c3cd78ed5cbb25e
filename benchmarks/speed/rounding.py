"""The closed-form defenses against the released algorithms, and how their time and memory grow.

    python benchmarks/speed/rounding.py compare [--architecture resnet20] [--images 256] [--runs 3] [--steps 4 12]
    python benchmarks/speed/rounding.py memory [--architecture resnet20] [--images 256]
    python benchmarks/speed/rounding.py growth [--runs 1]

`compare`: `invariant`, `reflect` and `efrap` against released EFRAP and released LAC, in turn in one process. The
released schedules are 10,000 steps a layer; they are timed at two shorter numbers of steps, and the line through both
is followed to 10,000.

`memory`: the peak of each method, in a process of its own, above what that process held before.

`growth`: `invariant`, the default, on networks of different size and kind, each run in a process of its own. Time and
memory are held against the work, the sum over layers of parameters times calibration positions: the multiplications of
one pass. Both exponents are slopes of least squares between logarithms; 1 is linear.

Random weights and random images, one thread. On random weights the default searches for a trigger and finds none; it is
given one here, so that it carries as many stamped copies of the images as it does on a victim. Seconds are processor
seconds, since the machine may be shared. Appends to
benchmarks/results/rounding-speed.jsonl.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from quantinel.bench.row_file import append_line
from quantinel.bench.rows import provenance
from quantinel.data.images import ImageSet
from quantinel.data.triggers import PatchTrigger
from quantinel.defenses import EFRAP, EFRAPReleased, Invariant, Reflect
from quantinel.defenses.lac import LAC
from quantinel.model.graph import FloatGraph, trace
from quantinel.model.untrained import untrained_model
from quantinel.quantization.calibration import Calibration, calibrate
from quantinel.quantization.quantized_model import QuantizedModel
from quantinel.quantization.reconstruction import RoundingMethod, Stamp, choose_codes
from quantinel.quantization.scheme import QuantScheme

RESULTS = Path(__file__).parents[1] / "results" / "rounding-speed.jsonl"
ITERATIONS = 10_000
SCHEME = QuantScheme()


@dataclass(frozen=True)
class InvariantOnVictim(Invariant):
    """The default with as many stamped copies as on a network where its search finds a trigger."""

    def stamps(
        self, graph: FloatGraph, calibration: Calibration, nearest: QuantizedModel, seed: int
    ) -> Sequence[Stamp]:
        """The bank, what was found, and a patch where nothing was."""
        found = super().stamps(graph, calibration, nearest, seed)
        return [*found, *[PatchTrigger.pq(calibration.images.shape[-1])] * (2 - len(found))]


CLOSED: dict[str, Callable[[], RoundingMethod]] = {"invariant": InvariantOnVictim, "reflect": Reflect, "efrap": EFRAP}
RELEASED: dict[str, Callable[[int], RoundingMethod]] = {
    "efrap-released": lambda steps: EFRAPReleased(iterations=steps),
    "lac": lambda steps: LAC(iterations=steps),
}
GROWTH = (("resnet20", 64), ("resnet20", 256), ("resnet18", 64), ("vit_small", 64))


def method_named(name: str, steps: int) -> RoundingMethod:
    """A method, with this many steps where it takes steps."""
    return CLOSED[name]() if name in CLOSED else RELEASED[name](steps)


def subject(architecture: str, images: int) -> tuple[FloatGraph, Calibration]:
    """A network with random weights, calibrated on random images."""
    model = untrained_model(architecture, 10, (3, 32, 32))
    pixels = torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    graph = trace(model.module, model.input_shape)
    return graph, calibrate(graph, ImageSet(pixels, None, "random"), SCHEME)


def seconds_of(graph: FloatGraph, ranges: Calibration, method: RoundingMethod) -> float:
    """Processor seconds of choosing all integers."""
    start = time.process_time()
    choose_codes(graph, ranges, method)
    return time.process_time() - start


def peak_mib() -> float:
    """Largest resident set of this program so far (Linux); ru_maxrss would count the parent that started it."""
    status = Path("/proc/self/status").read_text("utf-8")
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM"))


@torch.inference_mode()
def parameters_and_work(graph: FloatGraph, images: int) -> tuple[int, int]:
    """Quantized weights; and the sum over layers of weights times calibration positions."""
    positions: dict[str, int] = {}
    widths = {layer.node: len(graph.weight(layer)) for layer in graph.layers}

    class Count(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if n.name in widths:
                assert isinstance(value, Tensor)
                positions[n.name] = value.numel() // (2 * widths[n.name])
            return value

    Count(graph.module).run(torch.zeros(2, *graph.input_shape))
    weights = {layer.node: graph.weight(layer).numel() for layer in graph.layers}
    return sum(weights.values()), images * sum(weights[node] * positions[node] for node in weights)


def measure_here(architecture: str, images: int, method: str, steps: int) -> dict[str, float]:
    """One run of one method in this process."""
    graph, ranges = subject(architecture, images)
    parameters, work = parameters_and_work(graph, images)
    before = peak_mib()
    seconds = seconds_of(graph, ranges, method_named(method, steps))
    return {"seconds": seconds, "peak_mib": peak_mib(), "before_mib": before, "parameters": parameters, "work": work}


def measure_apart(architecture: str, images: int, method: str, steps: int = 1) -> dict[str, float]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "child", architecture, str(images), method, str(steps)]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


@dataclass(frozen=True)
class Scaled:
    """A released schedule at two numbers of steps."""

    short: float
    long: float
    steps: tuple[int, int]

    @property
    def full(self) -> float:
        """Seconds at `ITERATIONS` on the line through both."""
        slope = max(self.long - self.short, 0.0) / (self.steps[1] - self.steps[0])
        return self.short + slope * (ITERATIONS - self.steps[0])


def compare(
    architecture: str, images: int, runs: int, steps: tuple[int, int], names: Sequence[str]
) -> list[dict[str, Any]]:
    """One row for each of the closed forms ``names`` against each released algorithm."""
    seconds_of(*subject("vgg_small", 8), CLOSED["reflect"]())  # warm-up
    graph, ranges = subject(architecture, images)
    ours: dict[str, list[float]] = {name: [] for name in names}
    theirs: dict[str, list[Scaled]] = {name: [] for name in RELEASED}
    for _ in range(runs):
        for name in names:
            ours[name].append(seconds_of(graph, ranges, CLOSED[name]()))
        for name, released in RELEASED.items():
            short, long = (seconds_of(graph, ranges, released(count)) for count in steps)
            theirs[name].append(Scaled(short, long, steps))
    rows = []
    for mine, times in ours.items():
        for other, scaled in theirs.items():
            ratios = [item.full / seconds for seconds, item in zip(times, scaled, strict=True)]
            rows.append({
                "name": f"{mine} vs {other}",
                "ratio_median": round(statistics.median(ratios), 1),
                "ratio_min": round(min(ratios), 1),
                "ratio_max": round(max(ratios), 1),
                "ratio_is": "other / ours",
                "ours_seconds": round(statistics.median(times), 3),
                "other_seconds": round(statistics.median(item.full for item in scaled), 1),
                "other_seconds_short": [round(statistics.median(part), 3) for part in
                                        ([item.short for item in scaled], [item.long for item in scaled])],
                "runs": runs,
                "note": f"random weights, a trigger found; other side scaled linearly from {steps[0]} and {steps[1]} "
                        f"steps a layer to {ITERATIONS}; processor seconds",
                "config": {"architecture": architecture, "scheme": SCHEME.name, "images": images, "steps": list(steps)},
            })  # fmt: skip
    return rows


def memory(architecture: str, images: int) -> list[dict[str, Any]]:
    """A row for the peak of every method."""
    return [
        {
            "name": f"memory of {name}",
            "peak_mib": _above(measure_apart(architecture, images, name)),
            "note": "random weights, a trigger found; above what the process held before",
            "config": {"architecture": architecture, "scheme": SCHEME.name, "images": images},
        }
        for name in (*CLOSED, *RELEASED)
    ]


def _above(found: dict[str, float]) -> float:
    """MiB that a run needed more than its process held before."""
    return round(found["peak_mib"] - found["before_mib"], 1)


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Exponent of y over x: the slope of least squares between their logarithms."""
    return statistics.linear_regression([math.log(value) for value in x], [math.log(value) for value in y]).slope


def growth(runs: int) -> list[dict[str, Any]]:
    """A row for every network, and one with the exponents of all."""
    rows: list[dict[str, Any]] = []
    by_run: list[list[dict[str, float]]] = [[] for _ in range(runs)]
    for index in range(runs):
        by_run[index] = [measure_apart(architecture, images, "invariant") for architecture, images in GROWTH]
    for (architecture, images), *found in zip(GROWTH, *by_run, strict=True):
        rows.append({
            "name": "growth of invariant",
            "parameters": found[0]["parameters"],
            "work": found[0]["work"],
            "seconds": round(statistics.median(item["seconds"] for item in found), 3),
            "peak_mib": statistics.median(_above(item) for item in found),
            "runs": runs,
            "note": "random weights, a trigger found; processor seconds; memory above what the process held before",
            "config": {"architecture": architecture, "scheme": SCHEME.name, "images": images},
        })  # fmt: skip
    work = [[item["work"] for item in found] for found in by_run]
    time_slopes = [slope(x, [item["seconds"] for item in found]) for x, found in zip(work, by_run, strict=True)]
    memory_slopes = [slope(x, [_above(item) for item in found]) for x, found in zip(work, by_run, strict=True)]
    rows.append({
        "name": "exponents of invariant",
        "seconds_exponent": [round(value, 3) for value in sorted(time_slopes)],
        "memory_exponent": [round(value, 3) for value in sorted(memory_slopes)],
        "runs": runs,
        "note": "one value for each run over all networks; against parameters times calibration positions",
        "config": {"networks": [list(item) for item in GROWTH], "scheme": SCHEME.name},
    })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parts = parser.add_subparsers(dest="part", required=True)
    comparing = parts.add_parser("compare")
    comparing.add_argument("--architecture", default="resnet20")
    comparing.add_argument("--images", type=int, default=256)
    comparing.add_argument("--runs", type=int, default=3)
    comparing.add_argument("--steps", type=int, nargs=2, default=[4, 12])
    comparing.add_argument("--method", action="append", choices=list(CLOSED), help="default: all")
    remembering = parts.add_parser("memory")
    remembering.add_argument("--architecture", default="resnet20")
    remembering.add_argument("--images", type=int, default=256)
    growing = parts.add_parser("growth")
    growing.add_argument("--runs", type=int, default=1)
    child = parts.add_parser("child", help="one run, as JSON; for the other two")
    child.add_argument("architecture")
    child.add_argument("images", type=int)
    child.add_argument("method", choices=(*CLOSED, *RELEASED))
    child.add_argument("steps", type=int)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.part == "child":
        print(json.dumps(measure_here(arguments.architecture, arguments.images, arguments.method, arguments.steps)))
        return
    command = f"python benchmarks/speed/rounding.py {arguments.part}"
    if arguments.part != "growth":
        command += f" --architecture {arguments.architecture} --images {arguments.images}"
    if arguments.part != "memory":
        command += f" --runs {arguments.runs}"
    if arguments.part == "compare":
        short, long = arguments.steps
        names = arguments.method or list(CLOSED)
        command += f" --steps {short} {long}" + "".join(f" --method {name}" for name in arguments.method or ())
        rows = compare(arguments.architecture, arguments.images, arguments.runs, (short, long), names)
    elif arguments.part == "memory":
        rows = memory(arguments.architecture, arguments.images)
    else:
        rows = growth(arguments.runs)
    for row in rows:
        row = {"suite": "speed", "threads": 1, **row, **provenance(row["config"], command)}
        append_line(RESULTS, row)
        print(json.dumps({key: value for key, value in row.items() if key not in provenance({}, "")}))


if __name__ == "__main__":
    main()
