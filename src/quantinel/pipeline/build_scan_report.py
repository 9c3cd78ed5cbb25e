"""Assemble the report of a scan from what was measured."""

from __future__ import annotations

import datetime
import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from quantinel.audit.report import Verdict
from quantinel.audit.rules import NOT_ASSESSABLE, RULES
from quantinel.audit.scan_report import (
    BudgetUse,
    RecoveredTrigger,
    ScanCheck,
    ScanFinding,
    ScanReport,
    SchemeResult,
)
from quantinel.audit.scan_verdict import findings_of, scan_verdict, suppress, unjudged
from quantinel.audit.thresholds import Thresholds
from quantinel.backends.artefact_comparison import shipped_file
from quantinel.data.images import ImageSet
from quantinel.files import sha256_file
from quantinel.pipeline.identity import describe_images, describe_labels, environment
from quantinel.pipeline.scan_options import ScanOptions


@dataclass(frozen=True)
class Scan:
    """Everything that one scan was asked and measured.

    Attributes:
        source: what the user gave.
        model: what the report says of the model, its sha256 included.
        limits: sentences on what cannot be seen in a model like this one.
        cost: what was cut short or left out for want of time.
    """

    source: str
    model: dict[str, Any]
    limits: list[str]
    images: ImageSet | None
    options: ScanOptions
    thresholds: Thresholds
    checks: list[ScanCheck]
    schemes: list[SchemeResult]
    triggers: list[RecoveredTrigger]
    cost: list[str]
    seconds: dict[str, float]
    command: str
    harden_command: Callable[[str], str] | None
    today: datetime.date


def build_scan_report(scan: Scan) -> ScanReport:
    """Findings, verdict and all figures of one scan."""
    options = scan.options
    shipped = _artefact_sha256(options.artefact)
    findings, uses = suppress(findings_of(scan.checks), options.suppressions, scan.model["sha256"], scan.today, shipped)
    decision = scan_verdict(scan.checks, findings, _expected(options))
    return ScanReport(
        version=metadata.version("quantinel"),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        verdict=decision,
        summary=_summary(decision, scan.checks, findings),
        request={**_request(scan), "artefact_sha256": shipped},
        model=scan.model,
        data=None if scan.images is None else {**describe_images(scan.images), **describe_labels(scan.images)},
        thresholds=_thresholds(scan),
        checks=scan.checks,
        findings=findings,
        suppressions=uses,
        not_checked=_not_checked(scan),
        next_steps=_next_steps(scan, decision),
        schemes=scan.schemes,
        triggers=scan.triggers,
        budget=BudgetUse(
            limit=options.budget if math.isfinite(options.budget) else None,
            used=round(sum(check.seconds for check in scan.checks), 3),
            cost=scan.cost,
        ),
        seconds={stage: round(value, 3) for stage, value in scan.seconds.items()},
        environment=environment(),
    )


def _expected(options: ScanOptions) -> set[str]:
    """Ids of the checks without which there is no PASS."""
    schemes = [scheme.name for scheme in options.schemes]
    prunings = [pruning.name for pruning in options.prunings]
    targets = {"always": schemes, "pruning": prunings, "artefact": [options.artefact.name] if options.artefact else []}
    return {
        f"{target}/{name}" for rule in RULES.values() for target in targets.get(rule.when, ()) for name in rule.required
    }


def _artefact_sha256(path: Path | None) -> str | None:
    """Of the shipped file; None where there is none."""
    file = None if path is None else shipped_file(path)
    return sha256_file(file) if file is not None and file.is_file() else None


def _request(scan: Scan) -> dict[str, Any]:
    options = scan.options
    return {
        "source": scan.source,
        "data": None if scan.images is None else scan.images.name,
        "schemes": [scheme.name for scheme in options.schemes],
        "scheme_fields": {scheme.name: scheme.to_dict() for scheme in options.schemes},
        "prunings": [pruning.name for pruning in options.prunings],
        "detectors": "all" if options.detectors is None else list(options.detectors),
        "artefact": None if options.artefact is None else str(options.artefact),
        "budget_seconds": options.budget if math.isfinite(options.budget) else None,
        "seed": options.seed,
        "command": scan.command,
    }


def _thresholds(scan: Scan) -> dict[str, Any]:
    """Where the limits come from, and how often all of them together would fail a harmless model (union bound)."""
    used, rates = scan.thresholds, [check.false_positives for check in scan.checks]
    return {
        "entries": len(used.entries),
        "false_positive_rate_aimed_at": used.alpha,
        "sum_of_measured_rates_percent": round(sum(rate.percent or 0.0 for rate in rates if rate is not None), 3),
        "suite": used.suite,
        "rows_sha256": used.rows_sha256,
        "commit": used.commit,
        "created": used.created,
    }


def _summary(decision: Verdict, checks: Sequence[ScanCheck], findings: Sequence[ScanFinding]) -> str:
    accepted = sum(finding.suppressed is not None for finding in findings)
    aside = f" {accepted} accepted finding{'s' if accepted > 1 else ''} did not count." if accepted else ""
    if decision == "FAIL":
        worst = next(finding for finding in findings if finding.level == "error" and finding.suppressed is None)
        return f"Do not deploy this model as {worst.target}: {worst.title[:1].lower()}{worst.title[1:]}.{aside}"
    if decision == "INCONCLUSIVE":
        missing = [check for check in checks if check.required and unjudged(check)]
        warned = sum(finding.level == "warning" and finding.rule != NOT_ASSESSABLE for finding in findings)
        noticed = f" {warned} warning{'s' if warned > 1 else ''} by other checks." if warned else ""
        return (
            f"No verdict: {len(missing)} of {sum(check.required for check in checks)} required checks could not judge "
            f"this model, first {missing[0].detector} ({missing[0].reason}).{noticed}{aside}"
            if missing
            else f"No verdict: no required check ran.{noticed}{aside}"
        )
    return f"Every required check ran and found nothing that compression wakes.{aside}"


def _not_checked(scan: Scan) -> list[str]:
    options = scan.options
    schemes = ", ".join(scheme.name for scheme in options.schemes)
    items = [f"Other grids than {schemes}: a backdoor made for another grid sleeps on these."]
    if scan.images is None:
        items.append("Behaviour: no images were given, so only the weights were looked at.")
    elif scan.images.labels is None:
        items.append("Accuracy: the images have no labels; agreement with the float model was measured instead.")
    if not options.prunings:
        items.append("Pruning: none was named (--prune), so behaviour that pruning wakes was not looked for.")
    if options.artefact is None:
        items.append("The file that ships: none was given (--artefact); whoever quantizes can plant a backdoor too.")
    optional = [check for check in scan.checks if check.status in ("undecided", "not_run") and not check.required]
    for reason in dict.fromkeys(check.reason for check in optional):
        items.append(f"{', '.join(check.id for check in optional if check.reason == reason)}: {reason}.")
    return [
        *items,
        *scan.limits,
        "A backdoor that is awake in the float model itself: this scan compares the compressed with the float model.",
        "Attackers who know these checks and train against them; docs/scan.md says which ones they evade.",
    ]


def _next_steps(scan: Scan, decision: Verdict) -> list[str]:
    if decision == "PASS":
        return [
            "Deploy on the scanned grids only, and scan again when the model or the grid changes.",
            "Compare the file that ships with this model: add `--artefact FILE`.",
        ]
    schemes = [scheme.name for scheme in scan.options.schemes]
    worst = sorted(scan.checks, key=lambda check: (check.status != "fail", not check.alarm))
    scheme = next((check.target for check in worst if check.target in schemes), schemes[0])
    command = (scan.harden_command or _plain_command(scan.source))(scheme)
    if decision == "FAIL":
        return [
            "Do not deploy the ordinary quantization of this model.",
            "Choose other integers, and prove them:",
            command,
            "Or get the model from another source, and scan that.",
        ]
    reasons = dict.fromkeys(check.reason for check in scan.checks if check.required and unjudged(check))
    return [
        "Do not read this as a pass.",
        *(f"Missing: {reason}." for reason in reasons),
        "Hardening needs no verdict:",
        command,
    ]


def _plain_command(source: str) -> Callable[[str], str]:
    return lambda scheme: shlex.join(
        ["quantinel", "harden", source, "--data", "DATA", "--scheme", scheme, "-o", "hardened"]
    )
