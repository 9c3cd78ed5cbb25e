"""Put victims that were copied out of a store into one, so that defenses are measured without training them again.

    python -m benchmarks.import_victims threat-models --data-root DATA [--store DIR] \\
        [--from benchmarks/victims/threat-models]

The other way of `export_victims.py`. A folder is taken for an attack of the suite if its manifest says the same attack,
options, seed, architecture and data, and if its weights are those that the manifest was written for. What is in the
store already stays. Rows of such victims are measured with `quantinel bench run SUITE --reuse attack`, because other
code may have trained them: results are stored as of no known code and no known device, and without a training time.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

from benchmarks.export_victims import victim_folders

from quantinel.attacks import ATTACKS
from quantinel.attacks.protocol import recorded
from quantinel.bench.cells import expand
from quantinel.bench.methods import attack_config
from quantinel.bench.nodes import Node
from quantinel.bench.plan import Plan
from quantinel.bench.schedule import Schedule
from quantinel.bench.stages.job import MODEL
from quantinel.bench.store import Store, write_stored
from quantinel.bench.suite_files import find_suite, load_suite
from quantinel.cli.bench import store_folder
from quantinel.files import sha256_file
from quantinel.model.victim import WEIGHTS_NAME, VictimManifest, read_manifest

ROOT = Path(__file__).parents[1]
IMPORTED = "imported"
"""In place of the code and the device that made a victim."""


def problem(manifest: VictimManifest, weights: Path, node: Node) -> str | None:
    """Why a victim is not what an attack of the suite makes; None if it is."""
    attack = ATTACKS[node.config["attack"]]
    config = attack_config(attack.config, node.config["settings"], node.config["schemes"], attack.name)
    if (manifest.attack, manifest.seed, manifest.config) != (attack.name, node.config["seed"], dict(recorded(config))):
        return "made by another attack, with other options or from another seed"
    architecture = node.config["architecture"] or manifest.architecture  # of a network that the suite trains: its own
    if (manifest.architecture, manifest.data) != (architecture, node.config["data"]):
        return f"a {manifest.architecture} on {manifest.data}"
    if manifest.weights_sha256 != sha256_file(weights):
        return "its weights are not those that its manifest was written for"
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--from", dest="source", type=Path, help="default: benchmarks/victims/SUITE")
    arguments = parser.parse_args()
    source = arguments.source or ROOT / "benchmarks" / "victims" / arguments.suite
    suite = load_suite(find_suite(arguments.suite, ROOT / "benchmarks" / "suites"))
    plan = Plan(suite, expand(suite, arguments.data_root), arguments.data_root)
    store = Store(store_folder(arguments.store))
    schedule = Schedule(plan, store, None, reuse=frozenset({"train", "attack"}))
    schedule.run(lambda _: None)
    for name, label in victim_folders(plan).items():
        if name in schedule.results:
            continue
        folder, node, place = source / label, plan.nodes[name], schedule.place(name)
        if place is None or not folder.is_dir():
            print(f"{label}: {'what it starts from is not stored' if place is None else 'no folder of this name'}")
            continue
        manifest = read_manifest(folder)
        wrong = problem(manifest, folder / WEIGHTS_NAME, node)
        if wrong is not None:
            print(f"{label}: {folder} is {wrong}")
            continue
        where = replace(place.where, code=IMPORTED)
        with store.lock(where), store.write(where) as result:
            shutil.copytree(folder, result / MODEL)
            write_stored(
                result, where, node.label, dict(node.config), place.sources, place.inputs,
                "gate_failed" if manifest.rejected else "ok", manifest.rejected or None, 0.0, device=IMPORTED,
            )  # fmt: skip
        print(f"{label}: taken from {folder}")


if __name__ == "__main__":
    main()
