"""A small suite and rows for its cells, with figures chosen by the tests."""

from __future__ import annotations

from typing import Any

from quantinel.bench.cells import Cell, expand
from quantinel.bench.resolved import resolved
from quantinel.bench.rows import ResultRow, sha256_of
from quantinel.bench.suite import Suite
from quantinel.metrics import Proportion

SUITE: dict[str, Any] = {
    "name": "made",
    "given": "made",
    "title": "Made_up & 100 %",
    "run": {"seeds": [0]},
    "data": {"cifar10": {"test": "bundled:test", "train": "bundled:calibration"}},
    "models": {
        "victim": {"victim": "bundled:victim_int8", "data": "cifar10"},
        "clean": {"training": {}, "architecture": "resnet20", "data": "cifar10"},
    },
    "cells": [
        {"models": ["victim", "clean"], "schemes": "int8", "defenses": ["nearest", "efrap"],
         "detectors": "weight-residuals"},
    ],
    "published": [
        {"source": "Paper, Table 1", "model": "victim", "defense": "efrap", "cda": 90.0, "asr": 2.0, "tolerance": 1.0},
    ],
}  # fmt: skip


def made_suite(**changes: Any) -> Suite:
    return Suite.model_validate({**SUITE, **changes})


def cell_of(suite: Suite, identifier: str) -> Cell:
    return next(cell for cell in expand(suite) if cell.id == identifier)


def made_row(suite: Suite, identifier: str, **fields: Any) -> ResultRow:
    """A row; ``cda``, ``asr`` and ``ta`` in percent bring their intervals on 1000 and 900 images."""
    cell = cell_of(suite, identifier)
    for name, n in (("cda", 1000), ("asr", 900), ("ta", 1000)):
        if fields.get(name) is not None:
            fields.setdefault(f"{name}_interval", Proportion(round(fields[name] * n / 100), n).interval)
    described = {
        "suite": suite.name, "cell": cell.id, "model": cell.model,
        "attack": "pq-backdoor" if cell.model == "victim" else "none", "attack_variant": cell.attack,
        "defense": cell.defense, "defense_variant": cell.defense, "detector": cell.detector, "scheme": cell.scheme,
        "compressor": "none" if cell.scheme == "float" else "static-ptq", "calibration": cell.calibration,
        "architecture": "resnet20", "data": "cifar10", "seed": cell.seed,
        "backend": "float" if cell.scheme == "float" else "onnxruntime", "n_clean": 1000, "n_triggered": 900,
        "key": f"key of {cell.id}", "config_sha256": sha256_of(resolved(suite, cell)), "version": "0.1.0",
        "commit": "abc1234", "created": "2026-01-01T00:00:00+00:00", "hardware": "x86_64, 2 cores",
        "versions": {"torch": "2.13.0"}, "command": f"quantinel bench run made --only {cell.id}",
    }  # fmt: skip
    return ResultRow(**{**described, **fields})


FLOAT = "victim/none/float/none/s0"
NEAREST = "victim/none/int8/nearest/s0"
EFRAP = "victim/none/int8/efrap/s0"
SCORE = "victim/none/int8/weight-residuals/s0"
CLEAN_SCORE = "clean/none/int8/weight-residuals/s0"


def made_rows(suite: Suite) -> list[ResultRow]:
    """Figures of the victim; the clean model was not run."""
    return [
        made_row(suite, FLOAT, cda=91.0, asr=2.0, ta=90.0),
        made_row(suite, NEAREST, cda=88.0, asr=99.0, ta=10.0, seconds=0.5, extra={"flips_percent": 0.0}),
        made_row(suite, EFRAP, cda=90.5, asr=1.5, ta=89.0, seconds=5.0, extra={"flips_percent": 50.5}),
        made_row(suite, SCORE, seconds=0.1, extra={"score": 0.5, "edge_share": 0.6, "images": 0}),
    ]
