"""What noise does: made for the quantized network on its images, or that of float32 in its codes."""

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


def instruction_sets_table() -> str:
    """A line per victim and method: hardened with all instructions of the processor, and with AVX2 alone."""
    lines = [
        (
            row["victim"],
            row["scheme"],
            row["method"],
            f"{100 * row['codes_differ'] / row['codes']:.1f}",
            *(f"{row[side][rate]['percent']:.2f}" for rate in ("cda", "asr") for side in ("own", "avx2")),
        )
        for row in newest("instruction-sets", lambda row: (row["victim"], row["method"]))
    ]
    header = ("victim", "grid", "method", "codes that differ %", "CDA %", "CDA % (AVX2)", "ASR %", "ASR % (AVX2)")
    return markdown_rows(header, lines)
