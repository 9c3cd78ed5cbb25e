"""Write the generated tables of README.md and docs/ from the committed rows; --check fails where they differ.

    python benchmarks/tables.py [--check]

Blocks are ``<!-- table:NAME -->`` (see `TABLES`) and ``<!-- suite:NAME [options] -->``, up to ``<!-- end:NAME -->``;
`quantinel.bench.blocks` says which options there are.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
ATTACK_STEP = "attack step vs plain loop"
FORENSICS = "file forensics vs read and hash"
ROUNDING = "rounding-speed"

Line = dict[str, Any]


def newest(name: str, key: Callable[[Line], object], wanted: Callable[[Line], bool] = lambda _: True) -> list[Line]:
    """The newest wanted line of every key, in the order in which the keys first appear.

    Args:
        name: of a file of results.
        key: what makes a line replace an earlier one.
        wanted: which lines count.
    """
    lines = map(json.loads, (RESULTS / f"{name}.jsonl").read_text("utf-8").splitlines())
    return list({key(line): line for line in lines if wanted(line)}.values())


def configuration(line: Line) -> tuple[str, str]:
    """What a comparison was measured on."""
    return line["name"], json.dumps(line["config"], sort_keys=True)


def speed_table() -> str:
    """Newest line of every comparison and configuration."""
    lines = [
        (
            row["name"],
            f"{row['config']['architecture']}, {row['config']['scheme']}, {row['config']['images']} images",
            f"{row['ratio_median']:.2f} ({row['ratio_min']:.2f} to {row['ratio_max']:.2f})",
            row["ratio_is"],
            f"{row['ours_seconds']:.2f} s",
            f"{row['other_seconds']:.2f} s",
        )
        for row in newest("speed", configuration, lambda row: row["name"] not in (RUNNER, ATTACK_STEP, FORENSICS))
    ]
    return markdown_rows(("comparison", "setting", "ratio (range)", "is", "ours", "other"), lines)


def emission_table() -> str:
    """Newest line of every architecture."""
    lines = [
        (
            row["architecture"],
            row["profile"],
            f"{row['layers_equal']} of {row['layers']}",
            f"{row['integer_layers']} of {row['layers']}",
            f"{row['agreement_percent']:.2f} (n = {row['n']})",
            f"{row['max_difference_steps']:.2f}",
        )
        for row in newest("emission", lambda row: (row["architecture"], row["profile"]))
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
    lines = [
        (
            str(row["workers"]),
            f"{row['cells']}",
            f"{row['work_seconds'] / 3600:.1f} h",
            f"{row['wall_seconds'] / 3600:.2f} h",
            f"{100 * row['efficiency']:.1f} %",
        )
        for row in newest("scaling", lambda row: row["workers"])
    ]
    return markdown_rows(("workers", "cells", "work", "wall time", "efficiency"), lines)


def runner_table() -> str:
    """Newest line of every suite that the runner's own time was measured on."""
    lines = [
        (
            f"{row['config']['suite']}{''.join(' ' + pattern for pattern in row['config']['only'])}",
            f"{100 * (row['ratio_median'] - 1):+.1f} % ({100 * (row['ratio_min'] - 1):+.1f} to "
            f"{100 * (row['ratio_max'] - 1):+.1f} %)",
            f"{row['ours_seconds']:.1f} s",
            f"{row['other_seconds']:.1f} s",
            f"{row['cached_seconds']:.1f} s",
        )
        for row in newest("speed", configuration, lambda row: row["name"] == RUNNER)
    ]
    return markdown_rows(("suite", "runner costs (range)", "runner", "plain loop", "all stored"), lines)


def attack_step_table() -> str:
    """Newest line of every attack whose steps were timed."""
    lines = [
        (
            row["config"]["attack"],
            f"{row['config']['arch']}, {row['config']['batch_size']} images",
            f"{row['ratio_median']:.2f} [{row['ratio_interval'][0]:.2f}, {row['ratio_interval'][1]:.2f}]",
            str(row["runs"]),
            f"{row['ours_seconds']:.3f} s",
            f"{row['other_seconds']:.3f} s",
        )
        for row in newest("speed", configuration, lambda row: row["name"] == ATTACK_STEP)
    ]
    return markdown_rows(
        ("attack", "setting", "ratio [95 % interval]", "pairs of steps", "attack", "plain loop"), lines
    )


def forensics_table() -> str:
    """Newest line of every file and scheme that the data-free tests were timed on."""
    lines = [
        (
            f"{row['bytes'] / 1e6:.0f} MB, {row['config']['scheme']}",
            f"{row['ratio_median']:.2f} ({row['ratio_min']:.2f} to {row['ratio_max']:.2f})",
            f"{row['processor_ratio_median']:.2f}",
            f"{row['ours_seconds']:.2f} s",
            f"{row['other_seconds']:.2f} s",
            f"{row['peak_mib']:.0f} MiB",
            f"{row['other_peak_mib']:.0f} MiB",
        )
        for row in newest("speed", configuration, lambda row: row["name"] == FORENSICS)
    ]
    header = ("file", "ratio (range)", "in processor time", "forensics", "read and hash", "peak memory", "of hashing")
    return markdown_rows(header, lines)


def rounding_speed_table() -> str:
    """Newest line of every comparison of a closed form with a released algorithm."""
    lines = [
        (
            row["name"],
            f"{row['config']['architecture']}, {row['config']['scheme']}, {row['config']['images']} images",
            f"{row['ratio_median']:.0f} ({row['ratio_min']:.0f} to {row['ratio_max']:.0f}, {row['runs']} runs)",
            f"{row['ours_seconds']:.1f} s",
            " and ".join(f"{seconds:.1f} s" for seconds in row["other_seconds_short"])
            + " at "
            + " and ".join(map(str, row["config"]["steps"])),
            f"{row['other_seconds']:.0f} s",
        )
        for row in newest(ROUNDING, configuration, lambda row: " vs " in row["name"])
    ]
    header = ("comparison", "setting", "times faster (range)", "ours", "other, short", "other, at 10,000 steps")
    return markdown_rows(header, lines)


def rounding_memory_table() -> str:
    """Newest line of every method whose peak was measured."""
    lines = [
        (
            row["name"].removeprefix("memory of "),
            f"{row['config']['architecture']}, {row['config']['images']} images",
            f"{row['peak_mib']:.0f} MiB",
        )
        for row in newest(ROUNDING, configuration, lambda row: row["name"].startswith("memory of "))
    ]
    return markdown_rows(("method", "setting", "peak memory"), lines)


def rounding_growth_table() -> str:
    """Newest line of every network, and the exponents."""
    lines = [
        (
            f"{row['config']['architecture']}, {row['config']['images']} images",
            f"{row['parameters'] / 1e6:.2f} M",
            f"{row['work'] / 1e9:.1f} G",
            f"{row['seconds']:.1f} s",
            f"{row['peak_mib']:.0f} MiB",
        )
        for row in newest(ROUNDING, configuration, lambda row: row["name"] == "growth of reflect")
    ]
    exponents = newest(ROUNDING, configuration, lambda row: row["name"] == "exponents of reflect")
    lines += [
        ("exponent", "", "1", *(_span(row[f"{name}_exponent"]) for name in ("seconds", "memory"))) for row in exponents
    ]
    header = ("network", "parameters", "parameters x positions", "processor time", "peak memory")
    return markdown_rows(header, lines)


def _span(values: list[float]) -> str:
    """Smallest to largest, or the only one."""
    return " to ".join(f"{value:.2f}" for value in dict.fromkeys((min(values), max(values))))


def kill_table() -> str:
    """Newest line of every suite that was killed again and again."""
    lines = [
        (
            row["suite"],
            f"{row['kills']} ({row['kills_of_the_driver_alone']} of the driver alone)",
            f"{row['lives']}",
            f"{row['torn_lines_cut']}",
            f"{len(row['violations'])}",
        )
        for row in newest("kill", lambda row: row["suite"])
    ]
    header = ("suite", "SIGKILLs", "completed lives", "torn last lines", "rows lost, doubled or different")
    return markdown_rows(header, lines)


def input_detectors_table() -> str:
    """Newest line of every trigger and detector."""

    def share(of: dict[str, Any]) -> str:
        return f"{of['percent']:.1f} [{of['interval95'][0]:.1f}, {of['interval95'][1]:.1f}]"

    lines = [
        (
            row["trigger"],
            row["detector"],
            share(row["caught"]),
            share(row["false"]),
            f"{row['auc'][0]:.3f} [{row['auc'][1]:.3f}, {row['auc'][2]:.3f}]",
            f"{row['cda']:.1f} / {row['asr']:.1f}" if "cda" in row else "-",
        )
        for row in newest("input-detectors", lambda row: (row["trigger"], row["detector"]))
    ]
    return markdown_rows(("trigger", "detector", "caught %", "false %", "AUC", "victim's CDA / ASR %"), lines)


def similarity_table() -> str:
    """Newest line of every trigger."""
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
        for row in newest("similarity", lambda row: row["trigger"])
    ]
    header = ("trigger", "PSNR, dB", "SSIM", "PSNR of the blur alone", "its SSIM", "mean difference, of 255", "images")
    return markdown_rows(header, lines)


def scan_table() -> str:
    """A line per grid and detector that reads images: every victim's score, the highest harmless ones, and the time."""
    newest_rows = newest("scan", lambda line: line["cell"], lambda line: bool(line["detector"]))
    rows = [line for line in newest_rows if line["status"] == "ok" and line["extra"]["images"]]
    lines = []
    for scheme, detector in sorted({(row["scheme"], row["detector"]) for row in rows}):
        own = [row for row in rows if (row["scheme"], row["detector"]) == (scheme, detector)]
        own.sort(key=lambda row: -row["extra"]["score"])
        victims = [row for row in own if row["attack"] != "none"]
        harmless = [row for row in own if row["attack"] == "none"]
        highest = [f"{_harmless(row)} {_score(row)}" for row in harmless[:2]]
        lines.append(
            (
                scheme,
                detector,
                ", ".join(f"{_victim(row)} {_score(row)}" for row in victims) or "-",
                str(len(harmless)),
                ", ".join(highest) or "-",
                f"{sorted(row['seconds'] for row in own)[len(own) // 2]:.1f} s",
            )
        )
    return markdown_rows(("grid", "detector", "victims", "harmless models", "highest of them", "median time"), lines)


def _score(row: Line) -> str:
    """The score; with the p-value where it is something else than its logarithm, and the class that was suspected."""
    extra = row["extra"]
    said = [f"p {extra['p_value']:.2g}"] if row["detector"].endswith("-inversion") else []
    said += (
        [f"class {extra['suspect_class']:.0f}"]
        if row["detector"] == "neural-cleanse" and "suspect_class" in extra
        else []
    )
    return f"{extra['score']:.2f}" + (f" ({', '.join(said)})" if said else "")


def _victim(row: Line) -> str:
    return str(row["model"]).removesuffix("-victim") if row["attack_variant"] == "none" else str(row["attack_variant"])


def _harmless(row: Line) -> str:
    return str(row["model"]) if row["attack_variant"] == "none" else str(row["attack_variant"])


TABLES = {
    "scan": scan_table,
    "input-detectors": input_detectors_table,
    "similarity": similarity_table,
    "kill": kill_table,
    "speed": speed_table,
    "emission": emission_table,
    "scaling": scaling_table,
    "runner": runner_table,
    "attack-steps": attack_step_table,
    "forensics": forensics_table,
    "rounding-speed": rounding_speed_table,
    "rounding-memory": rounding_memory_table,
    "rounding-growth": rounding_growth_table,
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
