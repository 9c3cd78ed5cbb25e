"""Speed, memory and growth of rounding methods."""

from __future__ import annotations

from benchmarks.tables.lines import Line, configuration, newest

from quantinel.bench.formats import markdown_rows

ROUNDING = "rounding-speed"


def _subject(line: Line) -> tuple[str, str, str, int]:
    """What a comparison was measured on, whatever the numbers of steps that were followed to the full ones."""
    config = line["config"]
    return line["name"], config["architecture"], config["scheme"], config["images"]


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
        for row in newest(ROUNDING, _subject, lambda row: " vs " in row["name"])
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
        for row in newest(ROUNDING, configuration, lambda row: row["name"] == "growth of invariant")
    ]
    exponents = newest(ROUNDING, configuration, lambda row: row["name"] == "exponents of invariant")
    lines += [
        ("exponent", "", "1", *(_span(row[f"{name}_exponent"]) for name in ("seconds", "memory"))) for row in exponents
    ]
    header = ("network", "parameters", "parameters x positions", "processor time", "peak memory")
    return markdown_rows(header, lines)


def _span(values: list[float]) -> str:
    """Smallest to largest, or the only one."""
    return " to ".join(f"{value:.2f}" for value in dict.fromkeys((min(values), max(values))))
