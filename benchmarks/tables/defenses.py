"""Rounding defenses over all victims: means, and the worst that they let through."""

from __future__ import annotations

from statistics import fmean

from benchmarks.tables.lines import RESULTS

from quantinel.bench.effectiveness import defense_effectiveness
from quantinel.bench.formats import markdown_rows
from quantinel.bench.row_file import read_rows
from quantinel.bench.rows import ResultRow

SUITES = ("threat-models", "rounding")
DEFENSES = ("nearest", "reflect", "efrap", "efrap-released-500", "lac-pda-500")
"""Those whose rows on all victims are compared: no defense, the default, the closed form, both papers' algorithms."""

Victim = tuple[str, str, str]


def defense_table() -> str:
    """A line per defense, over the victims that every one of `DEFENSES` has a row of, on the victims' own grids."""
    rows = _newest()
    shared = [
        victim
        for victim in sorted({key[:3] for key in rows})
        if all((*victim, defense) in rows for defense in DEFENSES) and (victim[0], victim[1], "float", "none") in rows
    ]
    lines = []
    for defense in DEFENSES:
        own = [rows[(*victim, defense)] for victim in shared]
        before = [rows[(*victim, "nearest")] for victim in shared]
        floats = [rows[(victim[0], victim[1], "float", "none")] for victim in shared]
        ratings = [defense_effectiveness(*pair) for pair in zip(before, own, strict=True)]
        rises = [_percent(row.asr) - _percent(start.asr) for row, start in zip(own, floats, strict=True)]
        losses = [_percent(start.cda) - _percent(row.cda) for row, start in zip(own, floats, strict=True)]
        worst = max(range(len(own)), key=lambda index: _percent(own[index].asr))
        lines.append(
            (
                defense,
                f"{fmean(rating for rating in ratings if rating is not None):.2f}",
                f"{fmean(_percent(row.asr) for row in own):.2f}",
                f"{_percent(own[worst].asr):.2f} ({_name(shared[worst])})",
                f"{max(rises):+.2f}",
                f"{fmean(losses):.2f}",
                f"{max(losses):.2f}",
                str(len(own)),
            )
        )
    header = (
        "defense", "mean DER", "mean ASR %", "highest ASR %", "most above the float model's", "mean CDA lost to float",
        "most", "victims",
    )  # fmt: skip
    return markdown_rows(header, lines)


def _newest() -> dict[tuple[str, str, str, str], ResultRow]:
    """Newest row of every victim (model, attack, scheme) and defense; float rows and rows on own grids of attacks."""
    found = {}
    for suite in SUITES:
        for row in read_rows(RESULTS / f"{suite}.jsonl"):
            if row.attack != "none" and row.status == "ok" and row.seed == 0 and row.detector is None:
                found[(row.model, row.attack_variant, row.scheme, row.defense_variant)] = row
    awake = {key[:3] for key, row in found.items() if key[3] == "nearest" and _percent(row.asr) >= 80}
    return {key: row for key, row in found.items() if key[:3] in awake or key[3] == "none"}


def _percent(value: float | None) -> float:
    return 0.0 if value is None else value


def _name(victim: Victim) -> str:
    return victim[0] if victim[1] == "none" else victim[1]
