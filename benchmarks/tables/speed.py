"""Paired timings: ours beside another way to do the same."""

from __future__ import annotations

from benchmarks.tables.lines import configuration, newest

from quantinel.bench.formats import markdown_rows

RUNNER = "runner vs plain loop"
ATTACK_STEP = "attack step vs plain loop"
FORENSICS = "file forensics vs read and hash"


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
            row["config"].get("precision", "float32"),
            f"{row['ratio_median']:.2f} [{row['ratio_interval'][0]:.2f}, {row['ratio_interval'][1]:.2f}]",
            str(row["runs"]),
            f"{row['ours_seconds']:.3f} s",
            f"{row['other_seconds']:.3f} s",
        )
        for row in newest("speed", configuration, lambda row: row["name"] == ATTACK_STEP)
    ]
    return markdown_rows(
        ("attack", "setting", "attack in", "ratio [95 % interval]", "pairs of steps", "attack", "plain loop"), lines
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
