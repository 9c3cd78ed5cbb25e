"""Write the generated tables of README.md and docs/ from the committed rows; --check fails where they differ.

    python benchmarks/tables.py [--check]

Blocks are ``<!-- table:NAME -->`` (speed, emission) and ``<!-- suite:NAME [options] -->``, up to ``<!-- end:NAME -->``;
`quantinel.bench.blocks` says which options there are.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from quantinel.bench.blocks import read_options, replace_blocks
from quantinel.bench.cells import expand
from quantinel.bench.formats import FORMATS, markdown_rows
from quantinel.bench.methods import known
from quantinel.bench.published import check_published
from quantinel.bench.row_file import read_rows
from quantinel.bench.suite import find_suite, load_suite
from quantinel.bench.tables import suite_tables
from quantinel.errors import QuantinelError

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
RUNNER = "runner vs plain loop"


def speed_table() -> str:
    """Newest line of every comparison and configuration."""
    newest = {}
    for line in (RESULTS / "speed.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        if row["name"] != RUNNER:
            newest[row["name"], json.dumps(row["config"], sort_keys=True)] = row
    lines = [
        (
            row["name"],
            f"{row['config']['architecture']}, {row['config']['scheme']}, {row['config']['images']} images",
            f"{row['ratio_median']:.2f} ({row['ratio_min']:.2f} to {row['ratio_max']:.2f})",
            row["ratio_is"],
            f"{row['ours_seconds']:.2f} s",
            f"{row['other_seconds']:.2f} s",
        )
        for row in newest.values()
    ]
    return markdown_rows(("comparison", "setting", "ratio (range)", "is", "ours", "other"), lines)


def emission_table() -> str:
    """Newest line of every architecture."""
    newest = {}
    for line in (RESULTS / "emission.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        newest[row["architecture"], row["profile"]] = row
    lines = [
        (
            row["architecture"],
            row["profile"],
            f"{row['layers_equal']} of {row['layers']}",
            f"{row['integer_layers']} of {row['layers']}",
            f"{row['agreement_percent']:.2f} (n = {row['n']})",
            f"{row['max_difference_steps']:.2f}",
        )
        for row in newest.values()
    ]
    header = (
        "architecture",
        "profile",
        "layers equal",
        "layers in integers",
        "top-1 agreement %",
        "max. difference, steps",
    )
    return markdown_rows(header, lines)


def suite_block(name: str, options: str, root: Path = ROOT) -> str | None:
    """Tables of a suite; None while it has no rows."""
    path = root / "benchmarks" / "results" / f"{name}.jsonl"
    rows = read_rows(path) if path.exists() else []
    if not rows:
        return None
    suite = load_suite(find_suite(name, root / "benchmarks" / "suites"))
    cells = expand(suite)
    check_published(suite, cells)
    chosen, parts = read_options(options)
    return FORMATS["markdown"]([table for table in suite_tables(suite, cells, rows, chosen) if table.part in parts])


def scaling_table() -> str:
    """Newest line of every number of workers."""
    path = RESULTS / "scaling.jsonl"
    newest = {}
    for line in path.read_text("utf-8").splitlines() if path.exists() else ():
        row = json.loads(line)
        newest[row["workers"]] = row
    lines = [
        (
            str(row["workers"]),
            f"{row['cells']}",
            f"{row['work_seconds'] / 3600:.1f} h",
            f"{row['wall_seconds'] / 3600:.2f} h",
            f"{100 * row['efficiency']:.1f} %",
        )
        for row in newest.values()
    ]
    return markdown_rows(("workers", "cells", "work", "wall time", "efficiency"), lines)


def runner_table() -> str:
    """Newest line of every suite that the runner's own time was measured on."""
    newest = {}
    for line in (RESULTS / "speed.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        if row["name"] == RUNNER:
            newest[json.dumps(row["config"], sort_keys=True)] = row
    lines = [
        (
            f"{row['config']['suite']}{''.join(' ' + pattern for pattern in row['config']['only'])}",
            f"{100 * (row['ratio_median'] - 1):+.1f} % ({100 * (row['ratio_min'] - 1):+.1f} to "
            f"{100 * (row['ratio_max'] - 1):+.1f} %)",
            f"{row['ours_seconds']:.1f} s",
            f"{row['other_seconds']:.1f} s",
            f"{row['cached_seconds']:.1f} s",
        )
        for row in newest.values()
    ]
    return markdown_rows(("suite", "runner costs (range)", "runner", "plain loop", "all stored"), lines)


def kill_table() -> str:
    """Newest line of every suite that was killed again and again."""
    path = RESULTS / "kill.jsonl"
    newest = {}
    for line in path.read_text("utf-8").splitlines() if path.exists() else ():
        row = json.loads(line)
        newest[row["suite"]] = row
    lines = [
        (
            row["suite"],
            f"{row['kills']} ({row['kills_of_the_driver_alone']} of the driver alone)",
            f"{row['lives']}",
            f"{row['torn_lines_cut']}",
            f"{len(row['violations'])}",
        )
        for row in newest.values()
    ]
    header = ("suite", "SIGKILLs", "completed lives", "torn last lines", "rows lost, doubled or different")
    return markdown_rows(header, lines)


def similarity_table() -> str:
    """Newest line of every trigger."""
    path = RESULTS / "similarity.jsonl"
    newest = {}
    for line in path.read_text("utf-8").splitlines() if path.exists() else ():
        row = json.loads(line)
        newest[row["trigger"]] = row
    lines = [
        (
            f"`{row['trigger']}`",
            f"{row['psnr_db']:.1f}",
            f"{row['ssim']:.3f}",
            f"{row['blur_psnr_db']:.1f}",
            f"{row['blur_ssim']:.3f}",
            f"{row['mean_difference']:.1f}",
            f"{row['n']}",
        )
        for row in newest.values()
    ]
    header = ("trigger", "PSNR, dB", "SSIM", "PSNR of the blur alone", "its SSIM", "mean difference, of 255", "images")
    return markdown_rows(header, lines)


TABLES = {
    "similarity": similarity_table,
    "kill": kill_table,
    "speed": speed_table,
    "emission": emission_table,
    "scaling": scaling_table,
    "runner": runner_table,
}


def named_block(name: str, _: str) -> str:
    """A table that belongs to no suite."""
    return TABLES[known(name, TABLES, "table")]()


def updated(path: Path, root: Path = ROOT) -> tuple[str, list[str]]:
    """A document with its tables made again, and the suites that have no rows yet."""
    waiting: list[str] = []

    def of_suite(name: str, options: str) -> str | None:
        made = suite_block(name, options, root)
        if made is None:
            waiting.append(name)
        return made

    text = replace_blocks(path.read_text("utf-8"), "table", named_block)
    return replace_blocks(text, "suite", of_suite), waiting


def main(arguments: list[str], root: Path = ROOT) -> int:
    check = "--check" in arguments
    stale = []
    for path in (root / "README.md", *sorted((root / "docs").glob("*.md"))):
        try:
            text, waiting = updated(path, root)
        except QuantinelError as error:
            print(f"{path.name}: {error}")
            return 2
        for name in waiting:
            print(f"{path.name}: suite {name} has no rows yet, its block is left as it is")
        if text != path.read_text("utf-8"):
            stale.append(path.name)
            if not check:
                path.write_text(text, "utf-8")
    if stale and check:
        print(f"tables differ from benchmarks/results in {', '.join(stale)}: run python benchmarks/tables.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
