"""Blocks of the README and of docs/, made again from rows."""

from __future__ import annotations

from pathlib import Path

from benchmarks.tables.defenses import defense_table, victim_table
from benchmarks.tables.detection import (
    data_poisoned_inputs_table,
    input_detectors_table,
    scan_table,
    similarity_table,
)
from benchmarks.tables.lines import ROOT
from benchmarks.tables.noise import instruction_sets_table, noise_table
from benchmarks.tables.reliability import emission_table, kill_table, scaling_table
from benchmarks.tables.rounding import rounding_growth_table, rounding_memory_table, rounding_speed_table
from benchmarks.tables.speed import attack_step_table, forensics_table, runner_table, speed_table
from benchmarks.tables.verdicts import verdict_table

from quantinel.bench.blocks import read_options, replace_blocks
from quantinel.bench.cells import expand
from quantinel.bench.formats import FORMATS
from quantinel.bench.methods import known
from quantinel.bench.published import check_published
from quantinel.bench.row_file import read_rows
from quantinel.bench.suite_files import find_suite, load_suite
from quantinel.bench.tables import suite_tables

TABLES = {
    "defenses": defense_table,
    "victims": victim_table,
    "scan": scan_table,
    "verdicts": verdict_table,
    "input-detectors": input_detectors_table,
    "data-poisoned-inputs": data_poisoned_inputs_table,
    "similarity": similarity_table,
    "best-noise": noise_table,
    "instruction-sets": instruction_sets_table,
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
