"""Fit the thresholds of `quantinel scan` on detection rows of suites, and measure their false-positive rates.

    python benchmarks/calibrate_scan.py SUITE... --split SPLIT.toml [--alpha 0.01] [--most 5] [--scores] [-o FILE]

The split names recipes of harmless models and the rows that belong to them, as patterns of MODEL/ATTACK (the suite's
own labels):

    [fit]
    clean = ["clean-*/none"]
    bf16-cast = ["*-bf16/none"]
    [judge]
    pruned = ["*-pruned/none"]

Thresholds are fitted on the recipes under `fit`, and what is written as their false-positive rate is counted on those
under `judge`. No recipe and no model may be in both, and every harmless model must belong to a recipe: neither can be
chosen after seeing the scores. Attacked models take no part; the share of them beyond each threshold is printed.

`--alpha` is of a whole verdict: of all p-values on one grid together, and of those of pruning together. The combined
check of a scan (`quantinel.audit.combination`), whose rows are made of its parts', gets half of it; the other detectors
get equal shares of the rest (Bonferroni), those included that end up without a threshold. A p-value's threshold is its
share, or half of the smallest fitted p-value if that is smaller. Detectors of pruning look at no grid: they have one
threshold for all grids, a model counts once, and the p-value of a row is of all its prunings together, as in a scan.

A score's threshold is the k-th largest of n fitted scores, k = floor(alpha (n + 1)): under exchangeability a further
harmless model lies above it with probability at most alpha. With fewer models than 1 / alpha - 1 there is no such k;
the threshold is then the largest score and, as a margin, once more its distance from the median.

Two kinds of threshold are not written, and their detectors stay uncalibrated: they can warn and not fail. One that more
harmless models of the judged half exceed than `--most` (in percent). And one on p-values that are none: of n harmless
models, both halves, the smallest lies below 0.05 / (n t), for t detectors and grids that are looked at in this way. So
rates that are written are of thresholds that held once.
Scores without a p-value depend on the size of a model, which few recipes vary; their thresholds are written with
`--scores` alone.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import shlex
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import median

from quantinel.audit.report import Rate
from quantinel.audit.rules import COMBINED, on_grid, rule_of
from quantinel.audit.thresholds import ASSET, Statistic, Threshold, Thresholds
from quantinel.bench.combined_rows import combined_rows
from quantinel.bench.row_file import read_rows
from quantinel.bench.rows import ResultRow, commit
from quantinel.errors import InputError, QuantinelError, UsageError
from quantinel.files import write_file
from quantinel.metrics import Proportion
from quantinel.quantization.scheme import parse_scheme

ROOT = Path(__file__).parents[1]
HALVES = ("fit", "judge")


@dataclass(frozen=True)
class Recipe:
    """How harmless models were made: the half of the split it is in, and patterns of MODEL/ATTACK."""

    name: str
    half: str
    patterns: tuple[str, ...]


def read_split(path: Path) -> list[Recipe]:
    """Read a split.

    Raises:
        InputError: missing, no TOML, or a recipe in both halves.
    """
    try:
        tables = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is no split ({error}); see the head of benchmarks/calibrate_scan.py") from error
    if set(tables) != set(HALVES) or not all(isinstance(tables[half], dict) and tables[half] for half in HALVES):
        raise InputError(f"{path}: give recipes under [fit] and under [judge], and nothing else")
    both = sorted(set(tables["fit"]) & set(tables["judge"]))
    if both:
        raise InputError(f"{path}: {', '.join(both)} is both fitted and judged; move it to one half")
    return [Recipe(name, half, tuple(patterns)) for half in HALVES for name, patterns in tables[half].items()]


def recipe_of(row: ResultRow, recipes: Sequence[Recipe]) -> Recipe:
    """The recipe of a harmless model.

    Raises:
        UsageError: none, or more than one.
    """
    label = f"{row.model}/{row.attack_variant}"
    found = [recipe for recipe in recipes if any(fnmatchcase(label, pattern) for pattern in recipe.patterns)]
    if len(found) != 1:
        named = ", ".join(recipe.name for recipe in found) or "none"
        raise UsageError(f"{label} belongs to {named} of the recipes; every harmless model needs exactly one")
    return found[0]


def usable(rows: Sequence[ResultRow]) -> list[ResultRow]:
    """The newest row of every cell that scored a model on a grid with a detector's default options; combined ones."""
    newest = {(row.suite, row.cell): row for row in rows if row.detector is not None}
    chosen = [
        row for row in newest.values()
        if row.status == "ok" and "detector" not in row.settings and "score" in row.extra and bits_of(row) is not None
    ]  # fmt: skip
    return chosen + combined_rows(chosen)


def bits_of(row: ResultRow) -> int | None:
    """Weight bits of a row's scheme; None for float and for pruning."""
    try:
        return parse_scheme(row.scheme).weight_bits
    except UsageError:
        return None


def width(row: ResultRow) -> int | None:
    """Weight bits that a row's figure depends on; None where its detector looks at no grid."""
    return bits_of(row) if on_grid(str(row.detector)) else None


def named(detector: str, bits: int | None) -> str:
    """A detector and its grid, in words."""
    return detector if bits is None else f"{detector} at {bits} bits"


def title(entry: Threshold) -> str:
    """Whose threshold it is, in words."""
    return named(entry.detector, None if entry.weight_bits is None else entry.weight_bits[0])


def figure(row: ResultRow, statistic: Statistic) -> float:
    """A row's score or p-value."""
    return float(row.extra[statistic])


def share(detector: str, judging: Sequence[str], alpha: float) -> float:
    """What a p-value may use up of the false-positive rate of a verdict; the head of this file says how.

    Args:
        detector: that gives it.
        judging: all with p-values that the verdict rests on, this one included.
        alpha: of the verdict.
    """
    if COMBINED not in judging:
        return alpha / len(judging)
    return alpha / 2 if detector == COMBINED else alpha / 2 / (len(judging) - 1)


def limit(values: Sequence[float], statistic: Statistic, alpha: float) -> float:
    """The threshold of fitted values; the head of this file says how."""
    if statistic == "p_value":
        return min(alpha, min(values) / 2 if min(values) <= alpha else alpha)
    k = math.floor(alpha * (len(values) + 1))
    ordered = sorted(values, reverse=True)
    return ordered[k - 1] if k else ordered[0] + (ordered[0] - median(ordered))


def fit(rows: Sequence[ResultRow], recipes: Sequence[Recipe], alpha: float) -> list[Threshold]:
    """A threshold for every detector and number of bits that both halves have models for.

    Raises:
        UsageError: a harmless model without a recipe, or one model in both halves.
    """
    harmless = [row for row in rows if row.attack == "none"]
    recipe = {(row.suite, row.cell): recipe_of(row, recipes) for row in harmless}
    groups: dict[tuple[str, int | None], list[ResultRow]] = {}
    for row in once(harmless):
        groups.setdefault((row.detector or "", width(row)), []).append(row)
    p_valued = [pair for pair, own in groups.items() if statistic_of(own) == "p_value"]
    entries = []
    for (detector, bits), own in sorted(groups.items(), key=lambda group: (group[0][0], group[0][1] or 0)):
        halves = {half: [row for row in own if recipe[row.suite, row.cell].half == half] for half in HALVES}
        shared = {row.key for row in halves["fit"]} & {row.key for row in halves["judge"]}
        if shared:
            cells = ", ".join(row.cell for row in own if row.key in shared)
            raise UsageError(f"the same model is fitted and judged: {cells}; take it out of one half")
        if not halves["fit"] or not halves["judge"]:
            print(f"{named(detector, bits)}: models in one half only, left out", file=sys.stderr)
            continue
        statistic = statistic_of(own)
        values = {half: [figure(row, statistic) for row in halves[half]] for half in HALVES}
        judging = [name for name, b in p_valued if b == bits and rule_of(name).when == rule_of(detector).when]
        allowed = alpha if statistic == "score" else share(detector, judging, alpha)
        entry = Threshold(
            detector=detector,
            statistic=statistic,
            weight_bits=None if bits is None else (bits, bits),
            threshold=limit(values["fit"], statistic, allowed),
            false_positives=Rate(percent=0.0, interval95=(0.0, 100.0), hits=0, n=len(values["judge"])),
            fitted_on=sorted({recipe[row.suite, row.cell].name for row in halves["fit"]}),
            fitted_models=len(values["fit"]),
            judged_on=sorted({recipe[row.suite, row.cell].name for row in halves["judge"]}),
            images=min(int(row.extra.get("images", 0)) for row in own),
        )
        counted = Proportion(sum(map(entry.exceeded_by, values["judge"])), len(values["judge"]))
        if statistic == "score" or is_p_value(entry, values["fit"] + values["judge"], len(p_valued)):
            entries.append(entry.model_copy(update={"false_positives": Rate.model_validate(counted.to_dict())}))
    return entries


def once(rows: Sequence[ResultRow]) -> list[ResultRow]:
    """A model counts once for a detector that looks at no grid, however many grids it was scored on."""

    def identity(row: ResultRow) -> tuple[object, ...]:
        return (row.cell,) if on_grid(str(row.detector)) else (row.detector, row.model, row.attack_variant, row.seed)

    return list({(row.suite, *identity(row)): row for row in rows}.values())


def statistic_of(rows: Sequence[ResultRow]) -> Statistic:
    """What a detector's threshold is on: p-values where all of its rows have them."""
    return "p_value" if all("p_value" in row.extra for row in rows) else "score"


def is_p_value(entry: Threshold, values: Sequence[float], tests: int) -> bool:
    """Whether p-values of harmless models look like such, one of so many tests; says if not."""
    valid = min(values) >= 0.05 / (len(values) * tests)
    if not valid:
        print(
            f"{title(entry)}: the smallest p-value of {len(values)} harmless models is {min(values):.2g}, not written",
            file=sys.stderr,
        )  # fmt: skip
    return valid


def caught(rows: Sequence[ResultRow], entry: Threshold) -> dict[str, Proportion]:
    """By attack, how many attacked models lie beyond a threshold."""
    found: dict[str, list[bool]] = {}
    for row in once(rows):
        if row.attack != "none" and row.detector == entry.detector and entry.holds_for(bits_of(row) or 0):
            found.setdefault(row.attack_variant, []).append(entry.exceeded_by(figure(row, entry.statistic)))
    return {attack: Proportion(sum(hits), len(hits)) for attack, hits in sorted(found.items())}


def calibrate(
    rows: Sequence[ResultRow],
    recipes: Sequence[Recipe],
    alpha: float,
    command: str,
    most: float = 100.0,
    scores: bool = True,
) -> Thresholds:
    """Fit all thresholds, with where they come from."""
    chosen = usable(rows)
    if not chosen:
        raise InputError("there are no rows of detectors; run a suite with detectors first")
    text = "\n".join(sorted(row.model_dump_json(exclude_none=True) for row in chosen))  # fields may be added
    return Thresholds(
        alpha=alpha,
        suite=" ".join(sorted({row.suite for row in chosen})),
        rows_sha256=hashlib.sha256(text.encode()).hexdigest(),
        commit=commit(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        entries=[
            entry
            for entry in fit(chosen, recipes, alpha)
            if (scores or entry.statistic == "p_value") and held(entry, most)
        ],
    )


def held(entry: Threshold, most: float) -> bool:
    """Whether a threshold has at most ``most`` percent of false positives among the judged models; says if not."""
    rate = Proportion(entry.false_positives.hits, entry.false_positives.n)
    held = 100.0 * rate.hits <= most * rate.n
    if not held:
        print(f"{title(entry)}: false positives {rate}, not written", file=sys.stderr)
    return held


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="+", metavar="suite")
    parser.add_argument("--split", type=Path, required=True)
    parser.add_argument("--alpha", type=float, default=0.01)
    parser.add_argument("--most", type=float, default=5.0)
    parser.add_argument("--scores", action="store_true")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "src" / "quantinel" / "audit" / ASSET)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    given = parser.parse_args(arguments)
    command = shlex.join(
        [
            "python",
            "benchmarks/calibrate_scan.py",
            *given.suites,
            "--split",
            given.split.name,
            "--alpha",
            str(given.alpha),
            "--most",
            str(given.most),
            *(["--scores"] if given.scores else []),
        ]
    )
    try:
        rows = [row for suite in given.suites for row in read_rows(given.results / f"{suite}.jsonl")]
        found = calibrate(rows, read_split(given.split), given.alpha, command, given.most, given.scores)
        write_file(given.output, (found.model_dump_json(indent=2) + "\n").encode())
    except QuantinelError as error:
        print(f"calibrate_scan: {error}", file=sys.stderr)
        return error.exit_code
    for entry in found.entries:
        rate = Proportion(entry.false_positives.hits, entry.false_positives.n)
        print(f"{title(entry)}: {entry.statistic} {entry.threshold:.4g}, false positives {rate}")
        for attack, share in caught(usable(rows), entry).items():
            print(f"    {attack}: caught {share}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
