"""Result rows: one typed record per cell of a suite, with everything that says where its figures come from."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, JsonValue

from quantinel.audit.report import EvaluationRow, Rate

Status = Literal["ok", "failed", "gate_failed"]
Backend = Literal["float", "simulated", "onnxruntime"]
Interval = tuple[float, float]

VOLATILE = frozenset(
    {"seconds", "stages", "created", "hardware", "devices", "versions", "version", "commit", "command"}
)
"""Fields that differ between two runs of the same cell; all others repeat exactly."""
_LIBRARIES = ("torch", "numpy", "onnx", "onnxruntime", "safetensors", "scipy")

PERCENTAGES = ("cda", "asr", "ta", "base_rate")
"""Fields in percent that have an interval, in the field ``NAME_interval``."""


class ResultRow(BaseModel):
    """One cell: a model, an attack, a scheme, a defense or a detector, a seed, a backend.

    Attributes:
        suite: name of the suite.
        cell: identity within the suite, ``model/attack/scheme/defense/sSEED`` with the suite's own labels.
        model: label of the model in the suite.
        attack: "none", or a name of ``quantinel list attacks``.
        attack_variant: label of the attack in the suite (its name, unless the suite sets options).
        defense: "none" for the undefended float model, else a name of ``quantinel list defenses`` or ``repairs``.
        defense_variant: label of the defense in the suite.
        detector: a name of ``quantinel list detectors``; None for rows that measure accuracy and attack success.
        scheme: deployment grid; "float" where nothing is quantized.
        compressor: what compresses, e.g. static-ptq; "none" for float.
        calibration: data set (label in the suite) that calibrates.
        architecture, data: network and evaluation images.
        weights_sha256: of the float model's weights file, as in a victim's manifest: which training a row is of.
            None for failed cells and in rows of earlier code.
        seed: of the attack's training, the calibration draw and the defense.
        backend: float, simulated, onnxruntime.
        cda, asr, ta: percent, or None where not measured.
        cda_interval, asr_interval, ta_interval: 95 % Wilson intervals in percent.
        base_rate, base_rate_interval: percent of the images behind ``asr`` that are answered with the target class
            without the trigger; None in rows of earlier code.
        n_clean, n_triggered: images counted (ASR leaves out images of the target class).
        float_cda, float_asr: of the float model that was compressed.
        published: the paper's figures, or None.
        seconds: time of the stage that made this cell (choosing the integers, or repairing, for a defense).
        stages: time of every stage behind this cell, whether it ran now or was cached.
        settings: options of the attack, the defense and the detector that differ from their defaults.
        extra: further figures, such as ``flips_percent``; for detectors ``score`` (higher is more suspicious).
        key: content address of the evaluation: configuration, inputs and code.
        config_sha256: hash of the cell's resolved configuration, without code.
        devices: what the training stages behind this cell ran on, "cpu" or the GPU's name; a stage whose result does
            not say so is left out.
        versions: of the libraries that compute.
        command: recomputes the row.
        status: "gate_failed" where the attack did not make a victim; its figures are those of the failed attempt.
        error: one line, for a failed cell.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    suite: str
    cell: str
    model: str
    attack: str
    attack_variant: str
    defense: str
    defense_variant: str
    detector: str | None = None
    scheme: str
    compressor: str
    calibration: str = ""
    architecture: str
    data: str
    weights_sha256: str | None = None
    seed: int
    backend: Backend
    cda: float | None = None
    asr: float | None = None
    ta: float | None = None
    cda_interval: Interval | None = None
    asr_interval: Interval | None = None
    ta_interval: Interval | None = None
    base_rate: float | None = None
    base_rate_interval: Interval | None = None
    n_clean: int = 0
    n_triggered: int = 0
    float_cda: float | None = None
    float_asr: float | None = None
    published: dict[str, float] | None = None
    seconds: float | None = None
    stages: dict[str, float] = {}
    settings: dict[str, dict[str, JsonValue]] = {}
    extra: dict[str, float | int | str] = {}
    key: str
    config_sha256: str
    version: str
    commit: str
    created: str
    hardware: str
    devices: dict[str, str] = {}
    versions: dict[str, str] = {}
    command: str
    status: Status = "ok"
    error: str | None = None

    def repeatable(self) -> dict[str, Any]:
        """The fields that a second run of the same cell must give again."""
        return self.model_dump(exclude=set(VOLATILE))


def sha256_of(value: Any) -> str:
    """Hash of a JSON value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def provenance(config: Mapping[str, Any], command: str) -> dict[str, Any]:
    """Fields that say where a row comes from: configuration hash, versions, commit, time, hardware, command."""
    return {"config_sha256": sha256_of(dict(config)), "command": command, **environment()}


def environment() -> dict[str, Any]:
    """Version, commit, time, hardware and library versions of this process."""
    return {
        "version": metadata.version("quantinel"),
        "commit": commit(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware(),
        "versions": library_versions(),
    }


@functools.cache
def library_versions() -> dict[str, str]:
    """Versions of the libraries that compute, and of Python."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in _LIBRARIES}}


def hardware() -> str:
    """Processor architecture and cores."""
    return f"{platform.machine()}, {os.cpu_count()} cores"


@functools.cache
def commit() -> str:
    """Short hash of the checkout, with "+" where it had uncommitted changes; "unknown" outside a checkout."""
    folder = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()
        changes = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no", "--", "src"],
            cwd=folder.parents[2], capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found + ("+" if changes.strip() else "")


def measured(row: EvaluationRow, floating: EvaluationRow) -> dict[str, Any]:
    """Figures of an evaluation, as fields of a row."""

    def percent(rate: Rate | None) -> float | None:
        return None if rate is None or rate.percent is None else round(rate.percent, 4)

    def interval(rate: Rate | None) -> Interval | None:
        return None if rate is None else (round(rate.interval95[0], 4), round(rate.interval95[1], 4))

    return {
        "backend": row.backend,
        "cda": percent(row.cda),
        "asr": percent(row.asr),
        "ta": percent(row.ta),
        "cda_interval": interval(row.cda),
        "asr_interval": interval(row.asr),
        "ta_interval": interval(row.ta),
        "base_rate": percent(row.base_rate),
        "base_rate_interval": interval(row.base_rate),
        "n_clean": 0 if row.cda is None else row.cda.n,
        "n_triggered": 0 if row.asr is None else row.asr.n,
        "float_cda": percent(floating.cda),
        "float_asr": percent(floating.asr),
    }
