"""What detectors of models and of images find."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.tables.lines import Line, newest, victim_name
from benchmarks.tables.verdicts import developed

from quantinel.bench.formats import markdown_rows


def scan_table() -> str:
    """A line per grid and detector that reads images: every victim's score, the highest harmless ones, and the time."""
    newest_rows = newest("scan", lambda line: line["cell"], lambda line: bool(line["detector"]))
    rows = [line for line in newest_rows if line["status"] == "ok" and line["extra"]["images"]]
    lines = []
    for scheme, detector in sorted({(row["scheme"], row["detector"]) for row in rows}):
        own = [row for row in rows if (row["scheme"], row["detector"]) == (scheme, detector)]
        own.sort(key=lambda row: -row["extra"]["score"])
        victims = [row for row in own if row["attack"] != "none"]
        harmless = [row for row in own if row["attack"] == "none"]
        highest = [f"{_harmless(row)} {_score(row)}" for row in harmless[:2]]
        lines.append(
            (
                scheme,
                detector,
                ", ".join(f"{_victim(row)} {_score(row)}" for row in victims) or "-",
                str(len(harmless)),
                ", ".join(highest) or "-",
                f"{sorted(row['seconds'] for row in own)[len(own) // 2]:.1f} s",
            )
        )
    return markdown_rows(("grid", "detector", "victims", "harmless models", "highest of them", "median time"), lines)


def _score(row: Line) -> str:
    """The score; with the p-value where it is something else than its logarithm, and the class that was suspected."""
    extra = row["extra"]
    said = [f"p {extra['p_value']:.2g}"] if row["detector"].endswith("-inversion") else []
    said += (
        [f"class {extra['suspect_class']:.0f}"]
        if row["detector"] == "neural-cleanse" and "suspect_class" in extra
        else []
    )
    return f"{extra['score']:.2f}" + (f" ({', '.join(said)})" if said else "")


def _victim(row: Line) -> str:
    model, attack = str(row["model"]), str(row["attack_variant"])
    name = victim_name(model, attack)
    if developed(model, attack, row["seed"]):
        name += " (dev)"
    return f"{name} s{row['seed']}" if row["seed"] else name


def _harmless(row: Line) -> str:
    return str(row["model"]) if row["attack_variant"] == "none" else str(row["attack_variant"])


def input_detectors_table() -> str:
    """Newest line of every trigger and detector."""
    return _inputs(lambda line: True)


def data_poisoned_inputs_table() -> str:
    """The same for generated triggers alone."""
    return _inputs(lambda line: line["trigger"].startswith("data-poisoning"))


def _inputs(wanted: Callable[[Line], bool]) -> str:
    def share(of: dict[str, Any]) -> str:
        return f"{of['percent']:.1f} [{of['interval95'][0]:.1f}, {of['interval95'][1]:.1f}]"

    lines = [
        (
            row["trigger"],
            row["detector"],
            share(row["caught"]),
            share(row["false"]),
            f"{row['auc'][0]:.3f} [{row['auc'][1]:.3f}, {row['auc'][2]:.3f}]",
            f"{row['cda']:.1f} / {row['asr']:.1f}" if "cda" in row else "-",
        )
        for row in newest("input-detectors", lambda row: (row["trigger"], row["detector"]), wanted)
    ]
    return markdown_rows(("trigger", "detector", "caught %", "false %", "AUC", "victim's CDA / ASR %"), lines)


def similarity_table() -> str:
    """Newest line of every trigger."""
    lines = [
        (
            f"`{row['trigger']}`",
            f"{row['psnr_db']:.1f}",
            f"{row['ssim']:.3f}",
            f"{row['blur_psnr_db']:.1f}",
            f"{row['blur_ssim']:.3f}",
            f"{row['mean_difference']:.1f}",
            f"{row['n']}",
        )
        for row in newest("similarity", lambda row: row["trigger"])
    ]
    header = ("trigger", "PSNR, dB", "SSIM", "PSNR of the blur alone", "its SSIM", "mean difference, of 255", "images")
    return markdown_rows(header, lines)
