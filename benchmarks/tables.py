"""Write the generated tables of README.md and docs/ from the committed rows; --check fails where they differ.

python benchmarks/tables.py [--check]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from quantinel.bench.rows import read_rows
from quantinel.bench.tables import hardening_table, markdown, replace_block

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def speed_table() -> str:
    """Newest line of every comparison and configuration."""
    newest = {}
    for line in (RESULTS / "speed.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
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
    return markdown(("comparison", "setting", "ratio (range)", "is", "ours", "other"), lines)


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
    return markdown(header, lines)


def main() -> int:
    tables = {
        "hardening": hardening_table(read_rows(RESULTS / "hardening.jsonl")),
        "speed": speed_table(),
        "emission": emission_table(),
    }
    stale = []
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = updated = path.read_text("utf-8")
        for name, table in tables.items():
            if f"<!-- table:{name} -->" in text:
                updated = replace_block(updated, name, table)
        if updated != text:
            stale.append(path.name)
            if "--check" not in sys.argv:
                path.write_text(updated, "utf-8")
    if stale and "--check" in sys.argv:
        print(f"tables differ from benchmarks/results in {', '.join(stale)}: run python benchmarks/tables.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
