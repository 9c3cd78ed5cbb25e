"""Markdown tables from result rows; README and docs carry them between markers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from quantinel.bench.row_file import latest
from quantinel.bench.rows import ResultRow
from quantinel.errors import InputError


def figure(value: float | None, interval: tuple[float, float] | None) -> str:
    """``91.30 [90.7, 91.8]``, or a dash."""
    if value is None:
        return "-"
    return f"{value:.2f}" if interval is None else f"{value:.2f} [{interval[0]:.1f}, {interval[1]:.1f}]"


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table; pipes in cells are escaped."""
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def hardening_table(rows: Iterable[ResultRow]) -> str:
    """Float, nearest and hardened per model and scheme: CDA and ASR in percent with 95 % intervals."""
    newest = latest(row for row in rows if row.suite == "hardening").values()
    lines = [
        (
            row.architecture,
            row.attack if row.attack != "none" else "clean model",
            row.scheme,
            "float" if row.defense == "none" else row.defense,
            figure(row.cda, row.cda_interval),
            figure(row.asr, row.asr_interval),
        )
        for row in newest
    ]
    return markdown(("model", "attack", "scheme", "rounding", "CDA %", "ASR %"), lines)


def replace_block(text: str, name: str, table: str) -> str:
    """Put ``table`` between ``<!-- table:NAME -->`` and ``<!-- end:NAME -->``.

    Raises:
        InputError: the markers are missing.
    """
    pattern = re.compile(rf"(<!-- table:{re.escape(name)} -->\n).*?(<!-- end:{re.escape(name)} -->)", re.DOTALL)
    if not pattern.search(text):
        raise InputError(f"no markers for the table {name!r}; write <!-- table:{name} --> and <!-- end:{name} -->")
    return pattern.sub(lambda match: f"{match.group(1)}{table}\n{match.group(2)}", text)
