"""The report of one scan: the schema ``quantinel-scan-1``, the source of truth for every rendering.

docs/scan-report.md describes it and docs/scan-report.schema.json is its JSON schema; a field is never given another
meaning under the same ``format``.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError

from quantinel.audit.report import Rate, Report, ResidualHistogram, Verdict, read_report
from quantinel.audit.rules import Level
from quantinel.errors import InputError

FORMAT = "quantinel-scan-1"
CheckStatus = Literal["pass", "fail", "undecided", "not_run"]
JudgedBy = Literal["calibration", "bound", "nothing"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ClassScore(_Strict):
    """A detector's figure for one class."""

    index: int
    name: str
    score: FiniteFloat


class LayerScore(_Strict):
    """A detector's figure for one layer."""

    name: str
    score: FiniteFloat


class ScanCheck(_Strict):
    """One detector, or one built-in check, on one target.

    Attributes:
        id: ``TARGET/DETECTOR``, unique in a report.
        rule: id of the rule that it rests under.
        title: a sentence for people.
        detector: name as in ``quantinel list detectors``, or of a built-in check.
        target: scheme, pruning scheme or file that was looked at.
        status: "undecided" ran but could not judge, "not_run" did not run; ``reason`` says why.
        required: the verdict is never PASS unless it passed, or failed and was suppressed.
        judged_by: a calibrated threshold, an engineering bound (exact, but no test of harmlessness), or nothing.
        statistic: name of the figure that was judged.
        value: that figure.
        p_value: of the detector's null hypothesis, where it has one; of a pruning, times the number of prunings.
        threshold: the limit.
        false_positives: how often harmless models are beyond the limit, measured on recipes that it was not fitted on.
        fitted_on: recipes that the limit was fitted on.
        alarm: an uncalibrated figure that is unusual enough to warn.
        suspect_class: name of the class that the compressed model leans to.
        reason: why it is undecided or did not run, and what would help; of a check that failed, what else it could not
            judge.
        detail: figures in words.
        statistics: further figures by name.
        by_class, by_layer: the figure by class and by layer.
        notes: what was cut short, and what it cost in power.
        seconds: time.
    """

    id: str
    rule: str
    title: str
    detector: str
    target: str
    status: CheckStatus
    required: bool
    judged_by: JudgedBy = "nothing"
    statistic: str = ""
    value: FiniteFloat | None = None
    p_value: FiniteFloat | None = None
    threshold: FiniteFloat | None = None
    false_positives: Rate | None = None
    fitted_on: list[str] = []
    alarm: bool = False
    suspect_class: str | None = None
    reason: str = ""
    detail: str = ""
    statistics: dict[str, FiniteFloat] = {}
    by_class: list[ClassScore] = []
    by_layer: list[LayerScore] = []
    notes: list[str] = []
    seconds: FiniteFloat = 0.0


class SuppressedBy(_Strict):
    """Who accepted a finding, why, and until when."""

    statement: str
    expires: datetime.date


class ScanFinding(_Strict):
    """What the checks of one rule say about one target.

    Attributes:
        rule: id of the rule.
        title: of the rule.
        level: "error" fails the model, "warning" and "note" do not.
        target: scheme, pruning scheme or file.
        checks: ids of the checks behind it.
        detail: their figures, in words.
        suppressed: set where the finding was accepted; it then counts no more.
    """

    rule: str
    title: str
    level: Level
    target: str
    checks: list[str]
    detail: str
    suppressed: SuppressedBy | None = None


class SuppressionUse(_Strict):
    """What became of one entry of the suppression file."""

    rule: str
    statement: str
    expires: datetime.date
    target: str | None
    model: str | None
    artefact: str | None = None
    outcome: Literal["applied", "expired", "unused"]


class ClassShare(_Strict):
    """Share of the images that a model answers with a class, before and after compression, in [0, 1]."""

    index: int
    name: str
    floating: FiniteFloat
    compressed: FiniteFloat


class SchemeResult(_Strict):
    """One compression of the model on the images.

    Attributes:
        scheme: name.
        agreement: images answered as by the float model; None without images.
        float_cda, compressed_cda: accuracy; None without labels.
        classes: answers by class; empty without images.
        residuals: where the weights lie between the grid points.
    """

    scheme: str
    agreement: Rate | None
    float_cda: Rate | None
    compressed_cda: Rate | None
    classes: list[ClassShare]
    residuals: ResidualHistogram


class TriggerExample(_Strict):
    """One image with a recovered trigger, and what the models answer.

    Attributes:
        clean_png, triggered_png: base64 PNG.
        clean_answer: of the float model to the clean image.
        float_answer, compressed_answer: to the triggered image.
    """

    clean_png: str
    triggered_png: str
    clean_answer: str
    float_answer: str
    compressed_answer: str


class RecoveredTrigger(_Strict):
    """A trigger that a detector found, as pictures.

    Attributes:
        check: id of the check.
        target: scheme.
        suspect_class: class that it produces.
        mask_png, pattern_png: base64 PNG; None where the detector gives none.
        examples: sample images with it.
    """

    check: str
    target: str
    suspect_class: str
    mask_png: str | None
    pattern_png: str | None
    examples: list[TriggerExample]


class BudgetUse(_Strict):
    """Time.

    Attributes:
        limit: seconds that were allowed; None without a limit.
        used: seconds that the checks took.
        cost: what was cut short or left out, and what that cost in power.
    """

    limit: FiniteFloat | None
    used: FiniteFloat
    cost: list[str]


class ScanReport(_Strict):
    """Everything that a scan was asked, did and found.

    Attributes:
        verdict: FAIL if a finding of level "error" counts; INCONCLUSIVE if a required check did not judge.
        summary: one sentence.
        request: source, data, schemes, prunings, detectors, artefact, seed, budget, command.
        model: name, architecture, input shape, classes, layers, weights, sha256.
        data: images: name, n, labelled, sha256; None in a scan without images.
        thresholds: where the calibrated limits come from.
        not_checked: plain sentences on what this scan could not see.
        next_steps: plain sentences or commands.
        seconds: time by stage.
        environment: versions and hardware.
    """

    format: Literal["quantinel-scan-1"] = "quantinel-scan-1"
    version: str
    created: str
    verdict: Verdict
    summary: str
    request: dict[str, Any]
    model: dict[str, Any]
    data: dict[str, Any] | None
    thresholds: dict[str, Any]
    checks: list[ScanCheck]
    findings: list[ScanFinding]
    suppressions: list[SuppressionUse]
    not_checked: list[str]
    next_steps: list[str]
    schemes: list[SchemeResult]
    triggers: list[RecoveredTrigger]
    budget: BudgetUse
    seconds: dict[str, FiniteFloat]
    environment: dict[str, str]

    @property
    def counted(self) -> list[ScanFinding]:
        """Findings that nobody accepted."""
        return [finding for finding in self.findings if finding.suppressed is None]


def scan_schema() -> dict[str, Any]:
    """The JSON schema of a scan report."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **ScanReport.model_json_schema()}


def read_any_report(path: str | Path) -> Report | ScanReport:
    """Read a report of ``quantinel harden`` or of ``quantinel scan``.

    Raises:
        InputError: missing, or of neither schema.
    """
    path = Path(path)
    try:
        text = path.read_text("utf-8")
        return ScanReport.model_validate_json(text)
    except (OSError, UnicodeDecodeError):
        return read_report(path)  # says what is wrong
    except ValidationError as error:
        if f'"{FORMAT}"' in text[:1000]:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise InputError(
                f"{path} is not a scan report of this version ({where}: {first['msg']}); run `quantinel scan` again"
            ) from error
        return read_report(path)
