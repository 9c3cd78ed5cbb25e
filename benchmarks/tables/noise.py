"""How far noise of the data-poisoning attack's size separates float from quantized networks."""

from __future__ import annotations

from benchmarks.tables.lines import Line, newest

from quantinel.bench.formats import markdown_rows

_SHARES = ("float_ta", "float_asr", "deployed_asr", "separated")


def noise_table() -> str:
    """A line per grid and network: the one that the noise was made for, and others that are shown the same images."""
    lines = [
        (row["grid"], row["network"], str(row["n"]), *(_share(row[name]) for name in _SHARES))
        for row in newest("best-noise", lambda row: (row["grid"], row["network"]))
    ]
    header = ("grid", "network", "images", "float TA %", "float ASR %", "quantized ASR %", "both at once %")
    return markdown_rows(header, lines)


def _share(found: Line) -> str:
    low, high = found["interval95"]
    return f"{found['percent']:.1f} [{low:.1f}, {high:.1f}]"
