"""What the thresholds that ship make of every model of the suites that thresholds are fitted on."""

from __future__ import annotations

import tomllib
from collections import defaultdict
from collections.abc import Iterable
from fnmatch import fnmatchcase

from benchmarks.tables.lines import RESULTS, ROOT, victim_name

from quantinel.audit.rules import COMBINED
from quantinel.audit.thresholds import Thresholds, load_thresholds
from quantinel.bench.combined_rows import combined_rows
from quantinel.bench.formats import markdown_rows
from quantinel.bench.row_file import read_rows
from quantinel.bench.rows import ResultRow
from quantinel.metrics import Proportion
from quantinel.quantization.scheme import parse_scheme

ADAPTIVE = ("residuals-int4", "rerounding-int4", "alignment-int4")
SEEN = frozenset([("quasi-int4", 0), ("ca-distilled-int4", 0), ("residuals-int4", 0), ("ca-distilled-int4", 1)])
"""Victims, with their seeds, that the starts of trigger-inversion and the combined check were settled on."""
DEVELOPED, NEW, NEW_ADAPTIVE = "victims of the development", "other victims", "other victims, adaptive"
FITTED, JUDGED = "harmless, fitted", "harmless, judged"
GROUPS = (DEVELOPED, NEW, NEW_ADAPTIVE, FITTED, JUDGED)
Scanned = tuple[str, str, str, int]


def verdict_table() -> str:
    """A line per grid and group of models: how many fail, and who slips through."""
    thresholds = load_thresholds()
    groups: dict[tuple[str, str], dict[str, bool]] = defaultdict(dict)
    for (model, attack, scheme, seed), (group, rows) in scanned(thresholds).items():
        name = victim_name(model, attack)
        groups[scheme, group][f"{name}, seed {seed}" if seed else name] = _fails(rows.values(), thresholds, scheme)
    lines = []
    for scheme, group in sorted(groups, key=lambda key: (key[0], GROUPS.index(key[1]))):
        failed = groups[scheme, group]
        share = Proportion(sum(failed.values()), len(failed))
        unlike = [name for name, found in sorted(failed.items()) if found == group.startswith("harmless")]
        lines.append((scheme, group, str(share.n), str(share), "; ".join(unlike) or "-"))
    return markdown_rows(("grid", "models", "n", "FAIL %", "missed, or falsely alarmed"), lines)


def scanned(thresholds: Thresholds) -> dict[Scanned, tuple[str, dict[str, ResultRow]]]:
    """Every model on a grid that the combined check has a row of: its group, and its rows by detector.

    As thresholds are fitted: on detectors with their default options.
    """
    split = tomllib.loads((ROOT / "benchmarks" / "scan_split.toml").read_text("utf-8"))
    fitted = [pattern for patterns in split["fit"].values() for pattern in patterns]
    models: dict[Scanned, dict[str, ResultRow]] = defaultdict(dict)
    rows = [row for suite in thresholds.suite.split() for row in read_rows(RESULTS / f"{suite}.jsonl")]
    found = [row for row in rows if row.detector is not None and row.status == "ok" and "detector" not in row.settings]
    for row in found + combined_rows(found):
        models[row.model, row.attack_variant, row.scheme, row.seed][str(row.detector)] = row
    return {key: (_group(*key[:2], own[COMBINED], fitted), own) for key, own in models.items() if COMBINED in own}


def developed(model: str, attack: str, seed: int) -> bool:
    """Whether a detector was made with a look at this victim."""
    return model.endswith("-victim") or (attack, seed) in SEEN


def _group(model: str, attack: str, row: ResultRow, fitted: Iterable[str]) -> str:
    if row.attack != "none":
        return DEVELOPED if developed(model, attack, row.seed) else NEW_ADAPTIVE if attack in ADAPTIVE else NEW
    return FITTED if any(fnmatchcase(f"{model}/{attack}", pattern) for pattern in fitted) else JUDGED


def _fails(rows: Iterable[ResultRow], thresholds: Thresholds, scheme: str) -> bool:
    """Whether any calibrated detector is beyond its threshold."""
    bits = parse_scheme(scheme).weight_bits
    judged = [(row, thresholds.find(str(row.detector), bits)) for row in rows]
    return any(entry is not None and entry.exceeded_by(float(row.extra[entry.statistic])) for row, entry in judged)
