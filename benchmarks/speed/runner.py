"""What the runner costs: a suite through `quantinel bench run`, against a plain loop over the same stages.

    python benchmarks/speed/runner.py [--suite efrap] [--only PATTERN ...] [--data-root DATA] [--runs 3]

The plain loop runs every stage once, in order, in one process, without store, workers, hashes or rows: the work
itself, Python's imports included. The runner does the same with one worker and an empty store. Both are timed as whole
processes, in turn. A third run finds everything stored. Appends to benchmarks/results/speed.jsonl.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from quantinel.bench.row_file import append_line
from quantinel.bench.rows import provenance

RESULTS = Path(__file__).parents[1] / "results" / "speed.jsonl"

PLAIN = """
import importlib, sys, tempfile
from pathlib import Path
import torch
from quantinel.cli.bench import load
from quantinel.bench.plan import Plan
from quantinel.bench.stages.job import Job
name, root, *only = sys.argv[1:]
suite, cells = load(name, only)
plan = Plan(suite, cells, Path(root) if root else None)
torch.set_num_threads(suite.run.threads)
with tempfile.TemporaryDirectory() as scratch:
    for name, node in plan.nodes.items():
        output = Path(scratch, name)
        output.mkdir()
        folders = {role: Path(path) for role, path in node.files.items()}
        folders |= {role: Path(scratch, upstream) for role, upstream in node.inputs.items()}
        job = Job(node.config, folders, node.images, output, output / "checkpoint")
        try:
            importlib.import_module(f"quantinel.bench.stages.{node.stage}").run(job)
        except Exception as error:
            print(error)
"""


def timed(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def command_line(arguments: argparse.Namespace) -> str:
    """The command, without the places of this machine."""
    only = "".join(f" --only '{pattern}'" for pattern in arguments.only)
    root = " --data-root DATA" if arguments.data_root else ""
    return f"python benchmarks/speed/runner.py --suite {arguments.suite}{only}{root} --runs {arguments.runs}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", default="efrap")
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--data-root", default="")
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    plain = [sys.executable, "-c", PLAIN, arguments.suite, arguments.data_root, *arguments.only]
    base = [sys.executable, "-m", "quantinel", "bench", "run", arguments.suite, "--workers", "1", "--json"]
    base += [item for pattern in arguments.only for item in ("--only", pattern)]
    base += ["--data-root", arguments.data_root] if arguments.data_root else []
    ours, theirs, cached = [], [], []
    for run in range(arguments.runs):
        with tempfile.TemporaryDirectory() as scratch:
            command = [*base, "--store", f"{scratch}/store", "--results", f"{scratch}/results"]
            order = (ours, theirs) if run % 2 else (theirs, ours)
            for side in order:
                side.append(timed(command if side is ours else plain))
            cached.append(timed(command))
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    config = {"suite": arguments.suite, "only": arguments.only, "workers": 1}
    row = {
        "suite": "speed",
        "name": "runner vs plain loop",
        "ratio_median": round(statistics.median(ratios), 4),
        "ratio_min": round(min(ratios), 4),
        "ratio_max": round(max(ratios), 4),
        "ratio_is": "ours / other",
        "ours_seconds": round(statistics.median(ours), 3),
        "other_seconds": round(statistics.median(theirs), 3),
        "cached_seconds": round(statistics.median(cached), 3),
        "runs": arguments.runs,
        "threads": 1,
        "note": "whole processes; store, workers, hashes and rows against none of them",
        "config": config,
        **provenance(config, command_line(arguments)),
    }
    append_line(RESULTS, row)
    print(json.dumps(row, indent=1))


if __name__ == "__main__":
    main()
