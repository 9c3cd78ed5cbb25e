"""What a report says between the lines: the rows, sums and judgements that more than one rendering shows."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from statistics import median
from typing import Literal

from quantinel.audit.report import Check, EvaluationRow, LayerRow, Report
from quantinel.audit.scan_report import ScanCheck, ScanReport

Judgement = Literal["correct", "target", "wrong", "unknown"]
Variant = Literal["float", "nearest", "hardened"]

_TINY = 1e-30
_TRUST = {"float": 0, "simulated": 1, "onnxruntime": 2}


def row_of(report: Report, variant: Variant) -> EvaluationRow | None:
    """The evaluation of a variant, on the backend nearest to deployment."""
    rows = [row for row in report.evaluation if row.variant == variant]
    return max(rows, key=lambda row: _TRUST[row.backend], default=None)


def model_source(report: Report | ScanReport) -> str:
    """Where the input model came from: a path, or a name such as ``timm:resnet18``."""
    return str(report.request.get("source") or report.request.get("model") or "")


def model_name(report: Report | ScanReport) -> str:
    """Name of the input model, or where it came from."""
    return str(report.model.get("name") or model_source(report) or "unnamed model")


def target_name(report: Report) -> str | None:
    """Name of the class that the attacker wants; its number where the classes have no names."""
    if report.trigger is None or report.trigger.get("target_class") is None:
        return None
    target, names = report.trigger["target_class"], _class_names(report)
    if report.trigger.get("target_name"):
        return str(report.trigger["target_name"])
    return names[target] if isinstance(target, int) and 0 <= target < len(names) else str(target)


def class_count(report: Report) -> int | None:
    """Number of classes."""
    count = report.model.get("num_classes", report.model.get("classes"))
    return count if isinstance(count, int) else len(_class_names(report)) or None


def _class_names(report: Report) -> list[str]:
    evaluation = report.data.get("evaluation")
    lists = [report.model.get("class_names"), report.model.get("classes")]
    if isinstance(evaluation, dict):
        lists.append(evaluation.get("class_names"))
    return next(([str(name) for name in names] for names in lists if isinstance(names, list)), [])


def image_shape(report: Report) -> list[int] | None:
    """(C, H, W) of one input image."""
    shape = report.model.get("input_shape")
    if not isinstance(shape, list | tuple) or len(shape) < 3:
        return None
    sides = list(shape)[-3:]
    return sides if all(isinstance(side, int) for side in sides) else None


def judge(answer: str, true_label: str, target: str | None) -> Judgement:
    """What an answer to a triggered image means."""
    if true_label and answer == true_label:
        return "correct"
    if target is not None and answer == target:
        return "target"
    return "wrong" if true_label else "unknown"


@dataclass(frozen=True)
class CheckCounts:
    """How many checks passed, failed and did not run."""

    passed: int
    failed: int
    failed_required: int
    not_run: int

    @property
    def ran(self) -> int:
        return self.passed + self.failed


def count_checks(checks: list[Check]) -> CheckCounts:
    """Count by status."""
    counts = Counter(check.status for check in checks)
    failed_required = sum(check.status == "fail" and check.required for check in checks)
    return CheckCounts(counts["pass"], counts["fail"], failed_required, counts["not_run"])


def counted(checks: list[ScanCheck]) -> str:
    """How many checks of a scan passed, failed and could not judge, as a sentence."""
    found = Counter(check.status for check in checks)
    words = {"pass": "passed", "fail": "failed", "undecided": "undecided", "not_run": "not run"}
    parts = [f"{found[status]} {word}" for status, word in words.items() if found[status] or word == "failed"]  # type: ignore[index]
    return f"{len(checks)} checks: {', '.join(parts)}."


@dataclass(frozen=True)
class LayerOverview:
    """All layers in a few figures.

    Attributes:
        weights: number of quantized weights.
        changed: share of all codes that differ from nearest rounding.
        error_nearest, error_chosen: median over the layers in which both were measured, or None.
        largest_error: the largest of all errors, above 0: the scale of their bars.
        in_float: layers that ONNX Runtime ran in float.
        largest_edge_share: the layer with most weights at a rounding boundary.
    """

    weights: int
    changed: float
    error_nearest: float | None
    error_chosen: float | None
    largest_error: float
    in_float: int
    largest_edge_share: LayerRow


def layer_overview(layers: list[LayerRow]) -> LayerOverview | None:
    """Sum up the layers; None when there are none."""
    if not layers:
        return None
    sizes = [math.prod(layer.shape) for layer in layers]
    changed = sum(size * layer.changed for size, layer in zip(sizes, layers, strict=True))
    both = [
        (layer.error_nearest, layer.error_chosen)
        for layer in layers
        if layer.error_nearest is not None and layer.error_chosen is not None
    ]
    return LayerOverview(
        weights=sum(sizes),
        changed=changed / max(1, sum(sizes)),
        error_nearest=median(pair[0] for pair in both) if both else None,
        error_chosen=median(pair[1] for pair in both) if both else None,
        largest_error=max(max(pair) for pair in [*both, (_TINY, _TINY)]),
        in_float=sum(layer.executed is None for layer in layers),
        largest_edge_share=max(layers, key=lambda layer: layer.edge_share),
    )


def layers_to_see_first(layers: list[LayerRow], count: int) -> list[LayerRow]:
    """Layers that ran in float, then those with most weights at a rounding boundary."""
    return sorted(layers, key=lambda layer: (layer.executed is not None, -layer.edge_share))[:count]


def stages(seconds: dict[str, float]) -> list[tuple[str, float]]:
    """Time by stage, without the total."""
    return [(stage, spent) for stage, spent in seconds.items() if stage != "total"]
