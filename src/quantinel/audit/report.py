"""The report of one hardening run: the schema of ``report.json``, the source of truth for every rendering."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from quantinel.errors import InputError

Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE"]
Status = Literal["pass", "fail", "not_run"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Rate(_Strict):
    """A proportion in percent with its 95 % Wilson interval."""

    percent: float | None
    interval95: tuple[float, float]
    hits: int
    n: int


class Check(_Strict):
    """One check of the emitted artefact.

    Attributes:
        id: stable name, e.g. ``integers-equal``.
        title: a sentence for people.
        status: "not_run" says why in ``detail``.
        required: the verdict is never PASS when a required check did not run.
        statistic: what was measured, or None.
        threshold: the limit it was held against, or None.
        detail: figures, reason, what to do.
    """

    id: str
    title: str
    status: Status
    required: bool
    statistic: float | None = None
    threshold: float | None = None
    detail: str = ""


class Finding(_Strict):
    """Something noticed about the input model; it does not change the verdict on the output."""

    id: str
    title: str
    level: Literal["info", "warning", "error"]
    detail: str


class EvaluationRow(_Strict):
    """One model variant on the evaluation images.

    Attributes:
        variant: float, nearest (ordinary deployment) or hardened.
        backend: float (torch), simulated, or onnxruntime (the file on disk).
        cda: accuracy on clean images; None without labels.
        asr: attack success; None without a trigger.
        ta: accuracy of triggered images on their true label; None without labels or trigger.
        agreement: share of clean images answered as the float model answers them.
        base_rate: share of the images behind ``asr`` that are answered with the attacker's class without the trigger;
            None where ``asr`` is, and in reports of earlier versions.
    """

    variant: Literal["float", "nearest", "hardened"]
    backend: Literal["float", "simulated", "onnxruntime"]
    cda: Rate | None
    asr: Rate | None
    ta: Rate | None
    agreement: Rate | None
    base_rate: Rate | None = None


class LayerRow(_Strict):
    """One quantized layer.

    Attributes:
        changed: share of codes that differ from nearest rounding.
        error_nearest, error_chosen: output error relative to the output's energy; None if not measured.
        executed: operator that ONNX Runtime ran for it, e.g. QLinearConv; None where it ran in float.
        edge_share: share of float weights within 0.005 steps of a rounding boundary (1 % is expected).
    """

    name: str
    kind: Literal["conv", "linear"]
    shape: list[int]
    changed: float
    error_nearest: float | None
    error_chosen: float | None
    executed: str | None
    edge_share: float
    seconds: float


class ResidualHistogram(_Strict):
    """Where float weights sit between grid points, in steps.

    Attributes:
        edges: bin edges in [-0.5, 0.5].
        grid: share of weights per bin on the deployment grid.
        placebo: the same on grids whose scale is 7 % larger and smaller, averaged: what no attack aims at.
        edge_share: share with 0.495 < |r| <= 0.5 on the deployment grid.
        placebo_edge_share: the same on the placebo grids.
    """

    edges: list[float]
    grid: list[float]
    placebo: list[float]
    edge_share: float
    placebo_edge_share: float


class Example(_Strict):
    """One evaluation image, clean and triggered, with the three answers to the triggered one.

    Attributes:
        clean_png, triggered_png: base64 PNG.
        label, float_answer, nearest_answer, hardened_answer: class names; label may be "".
    """

    clean_png: str
    triggered_png: str
    label: str
    float_answer: str
    nearest_answer: str
    hardened_answer: str


class Verification(_Strict):
    """What re-opening the emitted file showed."""

    layers_equal: int
    layers: int
    integer_layers: int
    float_layers: list[str]
    agreement: Rate
    max_difference_steps: float
    runtime: str


class Report(_Strict):
    """Everything that a hardening run did and found.

    Attributes:
        request: what was asked: model source, data, scheme, rounding method with options, backend, seed, command.
        model: name, architecture, input shape, classes, parameter count, sha256, layers.
        data: calibration and evaluation sets: name, n, labelled, sha256.
        trigger: JSON form of the trigger and ``target_class``; None when none was given.
        not_checked: plain sentences on what this run could not see.
        next_steps: plain sentences or commands.
        seconds: time by stage.
        environment: versions and hardware.
    """

    format: Literal["quantinel-report-1"] = "quantinel-report-1"
    version: str
    created: str
    verdict: Verdict
    summary: str
    request: dict[str, Any]
    model: dict[str, Any]
    data: dict[str, Any]
    trigger: dict[str, Any] | None
    checks: list[Check]
    findings: list[Finding]
    not_checked: list[str]
    next_steps: list[str]
    evaluation: list[EvaluationRow]
    layers: list[LayerRow]
    residuals: ResidualHistogram
    verification: Verification
    examples: list[Example]
    seconds: dict[str, float]
    environment: dict[str, str]


def read_report(path: str | Path) -> Report:
    """Read a ``report.json``.

    Raises:
        InputError: missing, or not of this schema.
    """
    path = Path(path)
    try:
        return Report.model_validate_json(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give a report.json") from error
    except (ValidationError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} is not a Quantinel report of this version; run `quantinel harden` again to make one"
        ) from error
