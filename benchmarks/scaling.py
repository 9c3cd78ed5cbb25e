"""How long a thousand cells take on more workers, on paper, from measured stage costs.

    python benchmarks/scaling.py --data-root DATA [--suite scale]

Costs of stages are medians of the ``stages`` of committed rows, by stage and method; a method that no row has takes the
median of its stage. The scheduler's own rule (`quantinel.bench.estimates.makespan`) then places the stages on workers
of one core each. Transfers and the runner's own time (benchmarks/speed/runner.py) are not counted. Appends one line per
number of workers to benchmarks/results/scaling.jsonl.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from quantinel.bench.cells import expand
from quantinel.bench.estimates import Times, makespan
from quantinel.bench.plan import Plan
from quantinel.bench.row_file import append_line, read_results
from quantinel.bench.rows import ResultRow, provenance
from quantinel.bench.suite_files import find_suite, load_suite

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
WORKERS = (1, 2, 4, 8, 16, 32, 64, 128)


def costs_of(rows: Iterable[ResultRow]) -> Times:
    """What the stages behind the rows took."""
    times = Times()
    for row in rows:
        decisive = {
            "attack": {"attack": row.attack},
            "defend": {"defense": row.defense},
            "evaluate": {"backend": row.backend},
        }
        for stage, seconds in row.stages.items():
            times.learn(stage, decisive.get(stage, {}), seconds)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default="scale")
    parser.add_argument("--data-root", type=Path, required=True)
    arguments = parser.parse_args()
    suite = load_suite(find_suite(arguments.suite, ROOT / "benchmarks" / "suites"))
    cells = expand(suite, arguments.data_root)
    plan = Plan(suite, cells, arguments.data_root)
    times = costs_of(row for rows in read_results(RESULTS).values() for row in rows)
    for stage in {node.stage for node in plan.nodes.values()}:
        if not times.knows(stage):
            raise SystemExit(f"no committed row has a {stage} stage; run a suite with one first")
    seconds = {name: times.estimate(node) for name, node in plan.nodes.items()}
    work = sum(seconds.values())
    command = f"python benchmarks/scaling.py --suite {suite.name} --data-root DATA"
    for workers in WORKERS:
        wall = makespan(plan, seconds, workers)
        row = {
            "name": "scaling on paper", "suite_planned": suite.name, "cells": len(cells), "stages": len(seconds),
            "work_seconds": round(work, 1), "workers": workers, "wall_seconds": round(wall, 1),
            "efficiency": round(work / (workers * wall), 4),
            **provenance({"suite": suite.name, "workers": workers}, command),
        }  # fmt: skip
        append_line(RESULTS / "scaling.jsonl", row)
        print(f"{workers:4} workers: {wall:9.0f} s, efficiency {row['efficiency']:.3f}")


if __name__ == "__main__":
    main()
