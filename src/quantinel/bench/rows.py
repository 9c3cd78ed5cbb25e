"""Result rows: one JSON line per cell, typed, append-only."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from quantinel.audit.report import EvaluationRow, Rate
from quantinel.errors import InputError


class ResultRow(BaseModel):
    """One cell: an attack, a defense, a scheme, a model, a data set, a seed, a backend.

    Attributes:
        defense: "none" for the float model, else a name of ``quantinel list defenses``.
        backend: float, simulated, onnxruntime.
        cda, asr, ta: percent, or None where not measured.
        cda_interval, asr_interval: 95 % Wilson intervals in percent.
        published: the paper's figures, or None.
        seconds: time of the stage that made this cell (choosing the integers, for a defense).
        extra: further figures of the suite, such as flips or layers in integers.
        command: recomputes the row.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    suite: str
    attack: str
    defense: str
    scheme: str
    compressor: str
    architecture: str
    data: str
    seed: int
    backend: Literal["float", "simulated", "onnxruntime"]
    cda: float | None
    asr: float | None
    ta: float | None
    cda_interval: tuple[float, float] | None
    asr_interval: tuple[float, float] | None
    n_clean: int
    n_triggered: int
    float_cda: float | None
    float_asr: float | None
    published: dict[str, float] | None = None
    seconds: float | None
    extra: dict[str, float | int | str] = {}
    config_sha256: str
    version: str
    commit: str
    created: str
    hardware: str
    command: str
    status: Literal["ok", "failed", "gate_failed"] = "ok"
    error: str | None = None


def provenance(config: Mapping[str, Any], command: str) -> dict[str, Any]:
    """Fields that say where a row comes from: configuration hash, version, commit, time, hardware, command."""
    text = json.dumps(config, sort_keys=True, default=str)
    return {
        "config_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "version": metadata.version("quantinel"),
        "commit": _commit(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, "
        f"onnxruntime {metadata.version('onnxruntime')}",
        "command": command,
    }


def _commit() -> str:
    """Short hash of the checkout, with "+" where it had uncommitted changes; "unknown" outside a checkout."""
    folder = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()
        changes = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no", "--", "src"],
            cwd=folder.parents[2], capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("+" if changes.strip() else "")


def measured(row: EvaluationRow, floating: EvaluationRow) -> dict[str, Any]:
    """Figures of an evaluation, as fields of a row."""

    def percent(rate: Rate | None) -> float | None:
        return None if rate is None or rate.percent is None else round(rate.percent, 4)

    return {
        "backend": row.backend,
        "cda": percent(row.cda),
        "asr": percent(row.asr),
        "ta": percent(row.ta),
        "cda_interval": None if row.cda is None else row.cda.interval95,
        "asr_interval": None if row.asr is None else row.asr.interval95,
        "n_clean": 0 if row.cda is None else row.cda.n,
        "n_triggered": 0 if row.asr is None else row.asr.n,
        "float_cda": percent(floating.cda),
        "float_asr": percent(floating.asr),
    }


def append_rows(path: Path, rows: Iterable[ResultRow]) -> None:
    """Append rows, one JSON line each, in one write."""
    text = "".join(row.model_dump_json() + "\n" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as stream:
        stream.write(text)


def read_rows(path: Path) -> list[ResultRow]:
    """Read all rows of a file.

    Raises:
        InputError: a line is not a row of this schema.
    """
    rows = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        try:
            rows.append(ResultRow.model_validate_json(line))
        except ValidationError as error:
            raise InputError(f"{path}, line {number} is not a result row; recompute it") from error
    return rows


def latest(rows: Iterable[ResultRow]) -> dict[tuple[str, str, str, str, str], ResultRow]:
    """The newest row of every cell, by (suite, architecture, attack, scheme, defense)."""
    return {(row.suite, row.architecture, row.attack, row.scheme, row.defense): row for row in rows}
