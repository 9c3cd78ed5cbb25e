"""Kill a suite at random moments again and again, and prove that its rows are those of a run that nobody disturbed.

One "life" is a store and a results folder. The suite is started in it, killed with SIGKILL after a random share of the
time that an undisturbed run takes, and started again, until it completes; then the next life begins. Odd kills hit the
driver alone (its workers must end by themselves), even ones the whole process group.

    python benchmarks/kill_test.py --kills 50

Prints a summary as JSON, appends it to ``--record``, and ends with 1 if anything was lost, torn, doubled, different,
left running or left locked.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from quantinel.bench.row_file import append_line, identity, read_rows
from quantinel.bench.rows import ResultRow, commit
from quantinel.bench.store import check_stored, read_stored
from quantinel.errors import InputError

SURVIVAL_SECONDS = 10.0
RECORD = Path(__file__).parent / "results" / "kill.jsonl"


@dataclass
class Life:
    """A store and a results folder.

    Attributes:
        folder: holds both.
        suite: name or file.
        workers: stages at a time.
    """

    folder: Path
    suite: str
    workers: int

    @property
    def store(self) -> Path:
        """Stage results."""
        return self.folder / "store"

    @property
    def rows(self) -> Path:
        """The file of the rows."""
        return self.folder / "results" / f"{Path(self.suite).stem}.jsonl"

    def start(self) -> subprocess.Popen[bytes]:
        """The suite, in a process group of its own."""
        command = [
            sys.executable, "-m", "quantinel", "bench", "run", self.suite, "--store", str(self.store),
            "--results", str(self.rows.parent), "--workers", str(self.workers), "--quiet",
        ]  # fmt: skip
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "log.txt").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


@dataclass
class Account:
    """What has been seen.

    Attributes:
        violations: what must not be.
        kills, lives: counts; fractions: of the undisturbed time, at which the kills came.
        torn: times that a kill left an incomplete last line (allowed; the next writer cuts it off).
    """

    violations: list[str] = field(default_factory=list)
    kills: int = 0
    driver_kills: int = 0
    lives: int = 0
    torn: int = 0
    fractions: list[float] = field(default_factory=list)


def members(group: int) -> list[int]:
    """Living processes of a process group."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                state, _, pgrp = (entry / "stat").read_text("utf-8").rpartition(")")[2].split()[:3]
            except OSError:
                continue
            if int(pgrp) == group and state != "Z":
                found.append(int(entry.name))
    return found


def wait_until_gone(group: int) -> list[int]:
    """Wait until a process group is empty; returns who is left after `SURVIVAL_SECONDS`."""
    deadline = time.monotonic() + SURVIVAL_SECONDS
    while (left := members(group)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def rows_of(path: Path, account: Account) -> list[ResultRow]:
    """The rows on disk; anything else than whole rows and one incomplete last line is a violation."""
    if not path.exists():
        return []
    if not path.read_bytes().endswith(b"\n") and path.stat().st_size:
        account.torn += 1
    try:
        return read_rows(path)
    except InputError as error:
        account.violations.append(str(error))
        return []


def check_locks(life: Life, account: Account) -> None:
    """No lock may outlive its holder; the last threads of a killed process may take a moment to end."""
    for path in (*(life.store / "locks").glob("*"), *life.rows.parent.glob(".*.lock")):
        try:
            with FileLock(path, timeout=SURVIVAL_SECONDS):
                pass
        except Timeout:
            account.violations.append(f"{path.name} is still locked")


def check_store(life: Life, account: Account) -> None:
    """Whatever is found in the store is whole."""
    for path in life.store.glob("objects/*/*/[!.]*"):
        try:
            check_stored(path)
        except InputError as error:
            account.violations.append(str(error))
        stored = read_stored(path)
        if stored is not None and list(path.parent.glob(f".{path.name}.partial-*")):
            account.violations.append(f"{path} has remains of a killed writer")


def check_complete(life: Life, expected: dict[str, dict[str, Any]], account: Account) -> None:
    """The rows of a finished life are those of the undisturbed run."""
    rows = rows_of(life.rows, account)
    if not life.rows.read_bytes().endswith(b"\n"):
        account.violations.append("the finished file ends in an incomplete line")
    if len({identity(row) for row in rows}) != len(rows):
        account.violations.append("a row is there twice")
    found = {row.cell: row.repeatable() for row in rows}
    if len(found) != len(rows) or found.keys() != expected.keys():
        account.violations.append(f"{len(rows)} rows instead of {len(expected)}")
    for cell, row in found.items():
        differing = [name for name, value in row.items() if expected.get(cell, {}).get(name) != value]
        if differing:
            account.violations.append(f"{cell} differs in {', '.join(differing)}")
    check_store(life, account)
    check_locks(life, account)


def live(life: Life, account: Account, kills: int, seconds: float, generator: random.Random) -> bool:
    """Start, kill and start again until the suite completes or enough kills have happened; whether it completed."""
    while True:
        fraction = generator.random()
        limit = fraction * seconds if account.kills < kills else None
        process = life.start()
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            seen = rows_of(life.rows, account)
            whole = account.kills % 2 == 0
            (os.killpg if whole else os.kill)(process.pid, signal.SIGKILL)
            process.wait()
            account.kills += 1
            account.driver_kills += not whole
            account.fractions.append(round(fraction, 3))
            left = wait_until_gone(process.pid)
            if left:
                account.violations.append(f"{len(left)} processes outlived the driver")
                os.killpg(process.pid, signal.SIGKILL)
            still = {identity(row) for row in rows_of(life.rows, account)}
            account.violations += [f"{row.cell} was lost" for row in seen if identity(row) not in still]
            check_locks(life, account)
            continue
        if code != 0:
            account.violations.append(f"exit code {code}: {(life.folder / 'log.txt').read_text('utf-8')[-500:]}")
        if wait_until_gone(process.pid):
            account.violations.append("processes outlived a finished run")
        return code == 0


def main() -> int:
    """Run, kill, compare; see the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--suite", default="smoke", help="name or .toml file, of bundled data only")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--record", type=Path, default=RECORD, help="file to which the summary is appended")
    arguments = parser.parse_args()
    generator = random.Random(arguments.seed)
    account = Account()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="quantinel-kill-") as scratch:
        calm = Life(Path(scratch, "calm"), arguments.suite, arguments.workers)
        process = calm.start()
        code = process.wait()
        seconds = time.monotonic() - began
        if code != 0:
            print((calm.folder / "log.txt").read_text("utf-8"), file=sys.stderr)
            return 1
        expected = {row.cell: row.repeatable() for row in read_rows(calm.rows)}
        while account.kills < arguments.kills and not account.violations:
            life = Life(Path(scratch, f"life-{account.lives}"), arguments.suite, arguments.workers)
            account.lives += 1
            if live(life, account, arguments.kills, seconds, generator):
                check_complete(life, expected, account)
            print(f"{account.kills} kills, {account.lives} lives, {len(account.violations)} violations",
                  file=sys.stderr, flush=True)  # fmt: skip
    summary = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"), "commit": commit(),
        "suite": Path(arguments.suite).stem,
        "seed": arguments.seed, "workers": arguments.workers, "kills": account.kills,
        "kills_of_the_driver_alone": account.driver_kills, "lives": account.lives, "rows_per_life": len(expected),
        "undisturbed_seconds": round(seconds, 1), "seconds": round(time.monotonic() - began, 1),
        "torn_lines_cut": account.torn, "fractions": account.fractions, "violations": account.violations,
        "result": "failed" if account.violations else "passed",
    }  # fmt: skip
    print(json.dumps(summary, indent=1))
    append_line(arguments.record, summary)
    return 1 if account.violations else 0


if __name__ == "__main__":
    sys.exit(main())
