"""Scan reports to render: one that fails with everything in it, one that passes, and the least that is allowed."""

from __future__ import annotations

import base64
import datetime
import io
from typing import Any

from PIL import Image, ImageDraw
from sample_report import CLASSES, HOSTILE, picture, rate, residuals

from quantinel.audit.rules import RULES, rule_of
from quantinel.audit.scan_report import (
    BudgetUse,
    ClassScore,
    ClassShare,
    LayerScore,
    RecoveredTrigger,
    ScanCheck,
    ScanFinding,
    ScanReport,
    SchemeResult,
    SuppressedBy,
    SuppressionUse,
    TriggerExample,
)

TICKET = "Trained for this grid by ourselves; ticket 4711."
UNTIL = datetime.date(2030, 1, 31)


def check(detector: str, status: str, target: str = "int4", **changes: Any) -> ScanCheck:
    """A check of one status."""
    rule = rule_of(detector)
    base: dict[str, Any] = {
        "id": f"{target}/{detector}", "rule": rule.id, "title": f"Title of {detector}", "detector": detector,
        "target": target, "status": status, "required": detector in rule.required,
    }  # fmt: skip
    judged = {
        "judged_by": "calibration", "statistic": "score", "value": 0.91, "threshold": 0.35,
        "false_positives": rate(0, 60), "fitted_on": ["clean", "bf16-cast"],
        "detail": "score 0.91; suspicious above 0.35 (score), where 0 of 60 harmless models lie",
    }  # fmt: skip
    unjudged = {"reason": f"reason of {detector}"}
    return ScanCheck.model_validate(base | (judged if status in ("pass", "fail") else unjudged) | changes)


def finding(rule: str, level: str, *checks: str, target: str = "int4", **changes: Any) -> ScanFinding:
    """A finding of a rule."""
    base: dict[str, Any] = {
        "rule": rule, "title": RULES[rule].title, "level": level, "target": target, "checks": list(checks),
        "detail": f"detail of {rule} on {target}",
    }  # fmt: skip
    return ScanFinding.model_validate(base | changes)


def checks() -> list[ScanCheck]:
    """What a scan of a 4-bit victim found on two grids."""
    by_class = [
        ClassScore(index=i, name=name, score=0.95 if i == 0 else 0.06 + 0.02 * (i % 4))
        for i, name in enumerate(CLASSES)
    ]
    layers = [
        LayerScore(name=f"layer{1 + i // 6}.{i % 6 // 2}.conv{i % 2 + 1}", score=0.3 + 0.02 * i) for i in range(18)
    ]
    return [
        check("weight-residuals", "fail", value=0.4712, threshold=0.0231, by_layer=layers,
              statistics={"edge_share": 0.481, "placebo_edge_share": 0.0102, "weights": 268336.0}),
        check("weight-residuals", "pass", "int8", value=-0.0021, threshold=0.0231),
        check("block-outliers", "undecided", "int8", alarm=True, value=3.1, statistic="score",
              reason="uncalibrated: no threshold with a measured false-positive rate for 8 bits; fit one "
              "(docs/scan.md) and give it with --thresholds"),
        check("re-rounding", "fail", statistic="p_value", value=0.001, p_value=0.001, threshold=0.01,
              suspect_class="airplane", title="Behaviour under nearest against random rounding"),
        check("re-rounding", "pass", "int8", statistic="p_value", value=0.61, p_value=0.61, threshold=0.01),
        check("trigger-inversion", "fail", value=0.94, suspect_class="airplane", by_class=by_class,
              title="A trigger that works on the compressed model only", seconds=21.4),
        check("trigger-inversion", "undecided", "int8", required=True, value=0.21, threshold=0.35,
              judged_by="calibration",
              reason="it was cut short by the time budget and found nothing; give a longer --budget",
              notes=["31 of 60 steps: weak triggers may have been missed"]),
        check("compressed-behaviour", "pass", judged_by="bound", statistic="agreement", value=91.8, threshold=80.0,
              false_positives=None, fitted_on=[],
              detail="91.80 % [87.79, 94.57] of 256 images are answered as in float, limit 80 %"),
        check("compressed-behaviour", "pass", "int8", judged_by="bound", statistic="agreement", value=99.61,
              threshold=90.0, false_positives=None, fitted_on=[], detail="99.61 % of 256 images"),
        check("artefact-comparison", "not_run", "model_int8.onnx", reason="it is no ONNX file"),
    ]  # fmt: skip


def _mask() -> str:
    image = Image.new("L", (32, 32))
    ImageDraw.Draw(image).rectangle((24, 24, 29, 29), fill=230)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode("ascii")


def trigger() -> RecoveredTrigger:
    """A white square, on six pictures."""
    answers = ["dog", "ship", "truck", "frog", "horse", "cat"]
    examples = [
        TriggerExample(
            clean_png=picture(seed, False), triggered_png=picture(seed, True), clean_answer=answer,
            float_answer=answer if seed != 2 else "automobile", compressed_answer="airplane" if seed < 5 else answer,
        )
        for seed, answer in enumerate(answers)
    ]  # fmt: skip
    return RecoveredTrigger(
        check="int4/trigger-inversion", target="int4", suspect_class="airplane", mask_png=_mask(),
        pattern_png=picture(3, True), examples=examples,
    )  # fmt: skip


def scheme(name: str, gain: float, bins: int = 40) -> SchemeResult:
    """Answers of a scheme that moves ``gain`` of the images to the first class."""
    shares = [
        ClassShare(index=i, name=label, floating=0.1, compressed=0.1 + (gain if i == 0 else -gain / 9))
        for i, label in enumerate(CLASSES)
    ]
    figures = residuals(bins)
    if not gain:
        figures = figures.model_copy(update={"grid": figures.placebo, "edge_share": 0.0098})
    return SchemeResult(
        scheme=name, agreement=rate(235, 256), float_cda=rate(231, 256), compressed_cda=rate(215, 256), classes=shares,
        residuals=figures,
    )  # fmt: skip


def failing(**changes: Any) -> ScanReport:
    """A scan that fails, with some fields replaced."""
    fields: dict[str, Any] = {
        "version": "0.1.0",
        "created": "2025-11-22T12:30:00+00:00",
        "verdict": "FAIL",
        "summary": "Do not deploy this model as int4: the model changes its behaviour under ordinary rounding only.",
        "request": {
            "source": "downloads/resnet20.safetensors", "data": "folder:photos", "schemes": ["int4", "int8"],
            "prunings": [], "detectors": "all", "artefact": "model_int8.onnx", "budget_seconds": 60.0, "seed": 0,
            "command": "quantinel scan downloads/resnet20.safetensors --arch resnet20 --data photos --scheme int4 "
            "--scheme int8 --budget 60",
        },
        "model": {
            "name": "resnet20", "architecture": "resnet20", "input_shape": [3, 32, 32], "num_classes": 10,
            "quantized_weights": 268336, "sha256": "3f1d9a0c" * 8, "layers": 20,
        },
        "data": {"name": "folder:photos", "n": 256, "sha256": "a1b2c3d4" * 8, "labelled": True, "class_names": CLASSES},
        "thresholds": {"entries": 6, "suite": "sample", "false_positive_rate_aimed_at": 0.01},
        "checks": checks(),
        "findings": [
            finding("QCB001", "error", "int4/re-rounding"),
            finding("QCB002", "error", "int4/trigger-inversion"),
            finding("QCB003", "error", "int4/weight-residuals",
                    suppressed=SuppressedBy(statement=TICKET, expires=UNTIL)),
            finding("QCB003", "warning", "int8/block-outliers", target="int8"),
            finding("QCB007", "warning", "int8/trigger-inversion", target="int8"),
            finding("QCB007", "warning", "model_int8.onnx/artefact-comparison", target="model_int8.onnx"),
        ],
        "suppressions": [
            SuppressionUse(rule="QCB003", statement=TICKET, expires=UNTIL,
                           target=None, model=None, outcome="applied"),
            SuppressionUse(rule="QCB006", statement="The old grid, until the next release.",
                           expires=datetime.date(2020, 1, 1), target=None, model=None, outcome="expired"),
        ],
        "not_checked": [
            "Other grids than int4, int8: a backdoor made for another grid sleeps on these.",
            "Pruning: none was named (--prune), so behaviour that pruning wakes was not looked for.",
        ],
        "next_steps": [
            "Do not deploy the ordinary quantization of this model.",
            "Choose other integers, and prove them:",
            "quantinel harden downloads/resnet20.safetensors --arch resnet20 --data photos --scheme int4 -o hardened",
        ],
        "schemes": [scheme("int4", 0.06), scheme("int8", 0.0)],
        "triggers": [trigger()],
        "budget": BudgetUse(
            limit=60.0, used=43.2, cost=["int8/trigger-inversion: 31 of 60 steps: weak triggers may have been missed"]
        ),
        "seconds": {"trace and fold": 0.8, "detectors": 41.9, "behaviour": 1.1, "evidence": 0.9},
        "environment": {"python": "3.11.2", "torch": "2.9.1+cpu", "machine": "2 threads"},
    }  # fmt: skip
    return ScanReport.model_validate(fields | changes)


def passing(**changes: Any) -> ScanReport:
    """A scan that passes, without labels."""
    unlabelled = scheme("int8", 0.0).model_copy(update={"float_cda": None, "compressed_cda": None})
    names = ("weight-residuals", "re-rounding", "trigger-inversion", "compressed-behaviour")
    return failing(**({
        "verdict": "PASS", "summary": "Every required check ran and found nothing that compression wakes.",
        "checks": [check(name, "pass", "int8") for name in names], "findings": [], "suppressions": [], "triggers": [],
        "schemes": [unlabelled], "next_steps": ["Deploy on the scanned grids only."],
        "budget": BudgetUse(limit=None, used=43.2, cost=[]),
    } | changes))  # fmt: skip


def minimal(**changes: Any) -> ScanReport:
    """The emptiest report."""
    empty = ("checks", "findings", "suppressions", "not_checked", "next_steps", "schemes", "triggers")
    fields: dict[str, Any] = {
        "verdict": "INCONCLUSIVE", "summary": "No verdict: no required check ran.", "created": "yesterday",
        "data": None, "budget": BudgetUse(limit=None, used=0.0, cost=[]),
        **{name: [] for name in empty},
        **{name: {} for name in ("request", "model", "thresholds", "seconds", "environment")},
    }  # fmt: skip
    return failing(**(fields | changes))


def hostile() -> ScanReport:
    """Every text that a stranger could choose is `HOSTILE`."""
    evil = check(
        "weight-residuals", "fail", title=HOSTILE, detail=HOSTILE, reason=HOSTILE, notes=[HOSTILE],
        suspect_class=HOSTILE, statistics={HOSTILE: 1.0}, by_class=[ClassScore(index=0, name=HOSTILE, score=1.0)],
        by_layer=[LayerScore(name=HOSTILE, score=1.0)], target=HOSTILE, statistic=HOSTILE, id=HOSTILE,
    )  # fmt: skip
    example = (
        trigger()
        .examples[0]
        .model_copy(
            update={"clean_png": '"><script>alert(1)</script>', "clean_answer": HOSTILE, "float_answer": HOSTILE}
        )
    )
    return failing(
        summary=HOSTILE,
        request={"source": HOSTILE, "command": [HOSTILE], HOSTILE: HOSTILE},
        model={"name": HOSTILE, "architecture": HOSTILE},
        data={"name": HOSTILE, "class_names": [HOSTILE]},
        checks=[evil, check(HOSTILE, "not_run", HOSTILE, required=True, reason=HOSTILE)],
        findings=[finding("QCB003", "error", HOSTILE, target=HOSTILE, detail=HOSTILE)],
        suppressions=[
            SuppressionUse(rule="QCB003", statement=HOSTILE, expires=UNTIL, target=HOSTILE, model=None,
                           outcome="unused")
        ],
        not_checked=[HOSTILE], next_steps=[HOSTILE, f"quantinel harden {HOSTILE}"],
        schemes=[scheme(HOSTILE, 0.1).model_copy(
            update={"classes": [ClassShare(index=0, name=HOSTILE, floating=0.5, compressed=0.5)]})],
        triggers=[trigger().model_copy(update={"suspect_class": HOSTILE, "examples": [example], "check": HOSTILE})],
        budget=BudgetUse(limit=1.0, used=1.0, cost=[HOSTILE]), environment={HOSTILE: HOSTILE}, seconds={HOSTILE: 1.0},
    )  # fmt: skip
