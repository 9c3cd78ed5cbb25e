"""Rounding defenses over all victims: means, and the worst that they let through."""

from __future__ import annotations

from statistics import fmean

from benchmarks.tables.lines import RESULTS, victim_name

from quantinel.bench.deployment import parse_deployment
from quantinel.bench.effectiveness import defense_effectiveness
from quantinel.bench.formats import markdown_rows
from quantinel.bench.row_file import read_rows
from quantinel.bench.rows import ResultRow

SUITES = ("threat-models", "rounding", "triggers", "architectures", "seeds", "unseen")
FAST = ("nearest", "invariant", "reflect", "efrap")
"""No defense, the default, what it extends, the closed form: seconds each, so all victims have them."""
RELEASED = (*FAST, "efrap-released-500", "lac-pda-500")
"""With the algorithms of both papers: minutes each, and fewer victims."""

TARGET = 1.5
"""What the default should leave of every attack, in percent."""
CONTROLS = {
    "pq-blended-int8": "clean-blended-5",
    "ca-blended-int4": "clean-blended-3",
    "pq-sinusoid-int4": "clean-sinusoid-2",
    "ca-sinusoid-int4": "clean-sinusoid-7",
    "qu-anti-int4": "clean-corner",
    "ca-filter-int4": "clean-filter",
    "ca-warp-int4": "clean-warp",
    "ca-bar-int4": "clean-bar",
}
"""Clean networks with the trigger and class of an attack; all other attacks have the trigger that their model has."""
HOMES = {"victim-int8": "clean-resnet20", "victim-int4": "clean-resnet20"}
"""What the bundled victims were made from."""

Victim = tuple[str, str, int, str]
Rows = dict[tuple[str, str, int, str, str], ResultRow]


def defense_table() -> str:
    """A line per defense, over all victims on their own grids, and over those that the released algorithms ran on."""
    rows = _newest()
    lines = [_line(rows, defense, _shared(rows, defenses)) for defenses in (FAST, RELEASED) for defense in defenses]
    header = (
        "victims", "defense", "mean DER", "mean ASR %", f"ASR at most {TARGET} %", "highest ASR %",
        "most above the float model's", "mean above its own base rate (victims)", "mean CDA lost to float", "most",
    )  # fmt: skip
    return markdown_rows(header, lines)


def victim_table() -> str:
    """A line per victim: what the clean network, the float victim and the hardened one answer to its trigger."""
    rows, clean = _newest(), _clean()
    lines = [_victim_line(rows, clean, victim) for victim in _shared(rows, FAST)]
    header = (
        "victim", "grid", "float CDA %", "clean ASR %", "float ASR %", "nearest ASR %", "reflect ASR %",
        "invariant ASR %", "without trigger %", "reflect CDA lost", "invariant CDA lost",
    )  # fmt: skip
    return markdown_rows(header, lines)


def _victim_line(rows: Rows, clean: dict[str, ResultRow], victim: Victim) -> tuple[str, ...]:
    model, attack, _, scheme = victim
    start = rows[(*victim[:3], "float", "none")]
    control = clean[CONTROLS.get(attack) or HOMES.get(model, model)]
    lost = (_percent(start.cda) - _percent(rows[(*victim, defense)].cda) for defense in ("reflect", "invariant"))
    return (
        _name(victim), scheme, f"{start.cda:.2f}", f"{_percent(control.asr):.2f}", f"{_percent(start.asr):.2f}",
        *(f"{_percent(rows[(*victim, defense)].asr):.2f}" for defense in ("nearest", "reflect", "invariant")),
        _or_dash(rows[(*victim, "invariant")].base_rate),
        *(f"{value:.2f}" for value in lost),
    )  # fmt: skip


def _clean() -> dict[str, ResultRow]:
    """Newest float row with an attack success of every network that nobody attacked, by model."""
    return {
        row.model: row
        for suite in SUITES
        for row in read_rows(RESULTS / f"{suite}.jsonl")
        if row.attack_variant == row.attack == "none" and row.scheme == "float" and row.asr is not None
    }


def _shared(rows: Rows, defenses: tuple[str, ...]) -> list[Victim]:
    """Victims that every one of some defenses has a row of."""
    return [
        victim
        for victim in sorted({key[:4] for key in rows})
        if all((*victim, defense) in rows for defense in defenses) and (*victim[:3], "float", "none") in rows
    ]


def _line(rows: Rows, defense: str, victims: list[Victim]) -> tuple[str, ...]:
    own = [rows[(*victim, defense)] for victim in victims]
    before = [rows[(*victim, "nearest")] for victim in victims]
    floats = [rows[(*victim[:3], "float", "none")] for victim in victims]
    ratings = [defense_effectiveness(*pair) for pair in zip(before, own, strict=True)]
    rises = [_percent(row.asr) - _percent(start.asr) for row, start in zip(own, floats, strict=True)]
    losses = [_percent(start.cda) - _percent(row.cda) for row, start in zip(own, floats, strict=True)]
    excess = [_percent(row.asr) - row.base_rate for row in own if row.base_rate is not None]
    worst = max(range(len(own)), key=lambda index: _percent(own[index].asr))
    return (
        str(len(own)),
        defense,
        f"{fmean(rating for rating in ratings if rating is not None):.2f}",
        f"{fmean(_percent(row.asr) for row in own):.2f}",
        str(sum(_percent(row.asr) <= TARGET for row in own)),
        f"{_percent(own[worst].asr):.2f}, {_name(victims[worst])}",
        f"{max(rises):+.2f}",
        f"{fmean(excess):+.2f} ({len(excess)})" if len(excess) * 3 > len(own) else "-",
        f"{fmean(losses):.2f}",
        f"{max(losses):.2f}",
    )


def _attacked_grid(scheme: str) -> bool:
    """Float, or a grid of weights and activations that attacks are armed for, of a network with folded BatchNorm."""
    if scheme == "float":
        return True
    deployment = parse_deployment(scheme)
    return deployment.fold_batch_norm and deployment.grid is not None and deployment.grid.activations == "static"


def _newest() -> Rows:
    """Newest row of every victim (model, attack, seed, scheme) and defense; float rows and those on own grids."""
    found = {}
    for suite in SUITES:
        for row in read_rows(RESULTS / f"{suite}.jsonl"):
            if row.attack != "none" and row.status == "ok" and row.detector is None and _attacked_grid(row.scheme):
                found[(row.model, row.attack_variant, row.seed, row.scheme, row.defense_variant)] = row
    awake = {key[:4] for key, row in found.items() if key[4] == "nearest" and _percent(row.asr) >= 80}
    return {key: row for key, row in found.items() if key[:4] in awake or key[4] == "none"}


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _percent(value: float | None) -> float:
    return 0.0 if value is None else value


def _name(victim: Victim) -> str:
    model, attack, seed, _ = victim
    name = victim_name(model, attack)
    return f"{name}, seed {seed}" if seed else name
