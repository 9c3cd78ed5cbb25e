"""Full-size runs in pieces: what is next, run it, bring it home.

    python benchmarks/gpu/drive.py status [--write]
    python benchmarks/gpu/drive.py run --out DIR [--entry NAME] [--minutes 9] [--device cuda] [--data-root DATA]
    python benchmarks/gpu/drive.py merge DIR

`queue.toml` lists the entries in order: a suite, and which of its cells. `run` takes the first entry with open cells
(and the next ones while time is left), trains, attacks, defends and evaluates, and stops in time: trainings keep a
checkpoint, and the next call on the same machine goes on. DIR then holds the rows and, in parts of at most 15 MiB, as
many stage results and checkpoints as fit; copy it to any checkout and `merge` it there. QUEUE.md shows what is open;
`status --write` makes it anew.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import time
import tomllib
from collections import Counter
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from quantinel.bench.cells import expand
from quantinel.bench.row_file import append_rows, latest, read_rows
from quantinel.bench.store import RECORD
from quantinel.bench.suite_files import find_suite, load_suite

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SUITES = ROOT / "benchmarks" / "suites"
RESULTS = ROOT / "benchmarks" / "results"
STORE = HERE / "store"
PART_BYTES = 15 << 20
PARTS = 4


@dataclass(frozen=True)
class Entry:
    """One entry of the queue.

    Attributes:
        name: for --entry.
        suite: its suite.
        only: patterns of cells.
        minutes: expected time on one GPU.
        why: what it shows.
    """

    name: str
    suite: str
    only: tuple[str, ...]
    minutes: float
    why: str

    def cells(self) -> list[str]:
        """Ids of its cells, in the order of the suite."""
        suite = load_suite(find_suite(self.suite, SUITES))
        ids = [cell.id for cell in expand(suite)]
        chosen = [cell for cell in ids if any(fnmatchcase(cell, pattern) for pattern in self.only)]
        if not chosen:
            raise SystemExit(f"queue.toml: {self.name} names no cell of the suite {self.suite}")
        return chosen

    def states(self, results: Path) -> Counter[str]:
        """How many cells are ok, gate_failed, failed and open."""
        path = results / f"{self.suite}.jsonl"
        rows = latest(read_rows(path)) if path.exists() else {}
        return Counter(rows[cell].status if cell in rows else "open" for cell in self.cells())

    def is_open(self, results: Path) -> bool:
        """Whether a cell has no figures yet."""
        states = self.states(results)
        return bool(states["open"] or states["failed"])


def entries() -> list[Entry]:
    """The queue, in order."""
    listed = tomllib.loads((HERE / "queue.toml").read_text("utf-8"))["entry"]
    return [Entry(e["name"], e["suite"], tuple(e["only"]), e["minutes"], e["why"]) for e in listed]


def markdown(results: Path) -> str:
    """QUEUE.md."""
    lines = [
        "# Full-size runs",
        "",
        "Written by `python benchmarks/gpu/drive.py status --write` from `queue.toml` and the committed rows. The",
        "first entry that is not done is next: `python benchmarks/gpu/drive.py run --out DIR --data-root DATA`, then",
        "`python benchmarks/gpu/drive.py merge DIR`. DATA holds `cifar10/`, `gtsrb32/` and `imagenette64/`. Where",
        "there is a limit on what travels to the machine, bring the data in several steps into one folder outside of",
        "the checkout.",
        "",
        "| # | entry | cells | state | expected on one GPU | what it shows |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for number, entry in enumerate(entries(), 1):
        states = entry.states(results)
        state = "done" if not entry.is_open(results) else ", ".join(f"{n} {name}" for name, n in sorted(states.items()))
        lines.append(
            f"| {number} | `{entry.name}` | {sum(states.values())} | {state} | {entry.minutes:g} min | {entry.why} |"
        )
    return "\n".join(lines) + "\n"


def run(arguments: argparse.Namespace) -> int:
    """Run entries until the time is over; pack what came out."""
    deadline = time.monotonic() + 60 * arguments.minutes
    out = arguments.out / "results"
    out.mkdir(parents=True, exist_ok=True)
    done: dict[str, str] = {}
    for entry in entries():
        left = deadline - time.monotonic()
        chosen = entry.name == arguments.entry if arguments.entry else entry.is_open(arguments.results)
        if not chosen or left < 30:
            continue
        command = [
            sys.executable,
            "-m",
            "quantinel",
            "bench",
            "run",
            suite_argument(entry),
            "--device",
            arguments.device,
        ]
        # Absolute: the run starts in the checkout, wherever this script was started.
        command += ["--store", str(arguments.store.absolute()), "--results", str(out.absolute())]
        command += ["--deadline", f"{left:.0f}"]
        command += ["--workers", str(arguments.workers)]
        command += [item for pattern in entry.only for item in ("--only", pattern)]
        command += ["--data-root", str(arguments.data_root.absolute())] if arguments.data_root else []
        finished = subprocess.run(command, cwd=ROOT, check=False)
        done[entry.name] = "done" if finished.returncode == 0 else f"exit code {finished.returncode}"
    parts, left_out = pack(arguments.store, arguments.out)
    print(json.dumps({"entries": done, "parts": parts, "left_out": left_out}, indent=1))
    return 0 if done and all(state == "done" for state in done.values()) else 1


def suite_argument(entry: Entry) -> str:
    """How the command line names the entry's suite."""
    return entry.suite


def pack(store: Path, out: Path) -> tuple[int, list[str]]:
    """Put checkpoints and results of the store into numbered parts; what does not fit is named.

    Checkpoints go first (without them a run starts again), then small results, then large ones.
    """
    partial = sorted(path for path in store.glob("partial/*") if any(path.iterdir()))
    objects = sorted((path.parent for path in store.glob(f"objects/*/*/*/{RECORD}")), key=_bytes)
    room = PART_BYTES * PARTS
    chosen, left_out = [], []
    for folder in [*partial, *objects]:
        size = _bytes(folder)
        if size + 4096 <= room:
            chosen.append(folder)
            room -= size + 4096
        else:
            left_out.append(f"{folder.relative_to(store)} ({size >> 20} MiB)")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for folder in chosen:
            archive.add(folder, str(folder.relative_to(store)))
    data = buffer.getvalue()
    for old in out.glob("store-*.part"):
        old.unlink()
    count = max(1, -(-len(data) // PART_BYTES)) if chosen else 0
    for index in range(count):
        (out / f"store-{index:02d}.part").write_bytes(data[index * PART_BYTES : (index + 1) * PART_BYTES])
    return count, left_out


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def merge(arguments: argparse.Namespace) -> int:
    """Rows into the results, parts into the store, QUEUE.md anew."""
    added = 0
    for path in sorted((arguments.folder / "results").glob("*.jsonl")):
        added += len(append_rows(arguments.results / path.name, read_rows(path)))
    data = b"".join(path.read_bytes() for path in sorted(arguments.folder.glob("store-*.part")))
    stored = 0
    if data:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            members = [member for member in archive if not (arguments.store / member.name).is_file()]
            stored = sum(Path(member.name).name == RECORD for member in members)
            archive.extractall(arguments.store, members, filter="data")
    (HERE / "QUEUE.md").write_text(markdown(arguments.results), "utf-8")
    print(f"{added} new rows in {arguments.results}, {stored} new stage results in {arguments.store}")
    return 0


def status(arguments: argparse.Namespace) -> int:
    """Print the queue, or write QUEUE.md."""
    text = markdown(arguments.results)
    if arguments.write:
        (HERE / "QUEUE.md").write_text(text, "utf-8")
    else:
        print(text)
    return 0


def main(given: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    for name, action, text in (
        ("status", status, "show the queue"),
        ("run", run, "run the next entries"),
        ("merge", merge, "bring results home"),
    ):
        verb = verbs.add_parser(name, help=text)
        verb.set_defaults(action=action)
        verb.add_argument("--results", type=Path, default=RESULTS)
        if name != "status":
            verb.add_argument("--store", type=Path, default=STORE)
        if name == "status":
            verb.add_argument("--write", action="store_true")
        elif name == "merge":
            verb.add_argument("folder", type=Path)
        else:
            verb.add_argument("--out", type=Path, required=True)
            verb.add_argument("--entry", choices=[entry.name for entry in entries()])
            verb.add_argument("--minutes", type=float, default=9.0)
            verb.add_argument("--device", default="cuda")
            verb.add_argument("--data-root", type=Path, default=os.environ.get("QUANTINEL_DATA"))
            verb.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args(given)
    result: int = arguments.action(arguments)
    return result


if __name__ == "__main__":
    sys.exit(main())
