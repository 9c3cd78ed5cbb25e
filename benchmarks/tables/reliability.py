"""Whether files hold what was chosen, and whether the runner survives."""

from __future__ import annotations

from benchmarks.tables.lines import newest

from quantinel.bench.formats import markdown_rows


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
