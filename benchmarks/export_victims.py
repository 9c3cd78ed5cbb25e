"""Copy the victims of a suite out of the store, for work that starts from them.

    python benchmarks/export_victims.py threat-models --data-root DATA [--store DIR] [--to benchmarks/victims]

Runs nothing: attacks that are not stored, or that failed their gate, are named and left out. A victim's folder is
called like its attack in the suite, with the model before it where several are attacked alike, and the seed behind
it unless that is 0.
"""

from __future__ import annotations

import argparse
import shutil
from collections import Counter
from pathlib import Path

from quantinel.bench.cells import expand
from quantinel.bench.plan import Plan
from quantinel.bench.schedule import Schedule
from quantinel.bench.stages.job import MODEL
from quantinel.bench.store import Store
from quantinel.bench.suite_files import find_suite, load_suite
from quantinel.cli.bench import store_folder
from quantinel.files import atomic_directory

ROOT = Path(__file__).parents[1]


def victim_folders(plan: Plan) -> dict[str, str]:
    """The folder of every victim, by the stage that makes it: the last attack of a chain. One may lend a trigger."""
    made = {}
    for work in plan.work:
        attack = next((name for name in reversed(work.chain) if plan.nodes[name].stage == "attack"), None)
        if attack is not None:
            seed = f"-s{work.cell.seed}" if work.cell.seed else ""
            made[attack] = work.cell.model, f"{work.cell.attack}{seed}"
    counts = Counter(label for _, label in made.values())
    return {attack: f"{model}-{label}" if counts[label] > 1 else label for attack, (model, label) in made.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--to", type=Path, default=ROOT / "benchmarks" / "victims")
    arguments = parser.parse_args()
    suite = load_suite(find_suite(arguments.suite, ROOT / "benchmarks" / "suites"))
    cells = expand(suite, arguments.data_root)
    plan = Plan(suite, cells, arguments.data_root)
    reuse = frozenset({"train", "attack"})
    schedule = Schedule(plan, Store(store_folder(arguments.store)), None, reuse=reuse)
    schedule.run(lambda _: None)
    for node, label in victim_folders(plan).items():
        result = schedule.results.get(node)
        if result is None or result.folder is None or result.error is not None:
            print(f"{label}: {'not stored' if result is None else result.error}")
            continue
        with atomic_directory(arguments.to / label, overwrite=True) as folder:
            shutil.copytree(result.folder / MODEL, folder, dirs_exist_ok=True)
        print(f"{label}: {arguments.to / label}")


if __name__ == "__main__":
    main()
