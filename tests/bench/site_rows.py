"""Result rows of every kind, made up: victims, clean models, defenses, detectors, failures, foreign names."""

from __future__ import annotations

import itertools
import random
from typing import Any

from quantinel.bench.rows import ResultRow
from quantinel.bench.suite import Suite
from quantinel.metrics import Proportion

HOSTILE = "<script>alert('x')</script>&\"'`{{7*7}}/../\u202e=cmd"
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAFUlEQVR4nGP8z4APMOGVZRip0gARmQEbn2wSygAAAABJRU5ErkJggg=="


def made_row(cell: str = "net/none/int8/efrap/s0", suite: str = "made", **fields: Any) -> ResultRow:
    """A row; its labels follow from the cell's id unless they are given."""
    model, attack, scheme, method, seed = cell.split("/") if cell.count("/") == 4 else ("m", "none", "int8", "x", "s0")
    base: dict[str, Any] = {
        "suite": suite, "cell": cell, "model": model, "attack": attack, "attack_variant": attack, "defense": method,
        "defense_variant": method, "scheme": scheme, "compressor": "none" if scheme == "float" else "static-ptq",
        "calibration": "cifar10", "architecture": "resnet20", "data": "cifar10", "seed": int(seed[1:]),
        "backend": "float" if scheme == "float" else "onnxruntime", "key": f"{abs(hash_of(cell)):032x}"[:32],
        "config_sha256": "c" * 64, "version": "0.1.0", "commit": "abc1234", "created": "2026-01-02T03:04:05+00:00",
        "hardware": "x86_64, 2 cores", "versions": {"python": "3.11", "torch": "2.9"},
        "command": f"quantinel bench run {suite} --only {cell}",
    }  # fmt: skip
    return ResultRow(**{**base, **fields})


def hash_of(text: str) -> int:
    """The same on every run, unlike ``hash``."""
    return random.Random(text).getrandbits(120)


def figures(cda: float, asr: float, n: int = 10000) -> dict[str, Any]:
    """Accuracy and attack success with their intervals."""
    clean, triggered = Proportion(round(cda * n / 100), n), Proportion(round(asr * n * 0.9 / 100), round(n * 0.9))
    return {
        "cda": round(clean.percent, 4), "cda_interval": clean.interval, "n_clean": n,
        "asr": round(triggered.percent, 4), "asr_interval": triggered.interval, "n_triggered": triggered.n,
        "ta": 50.0, "ta_interval": (49.0, 51.0),
    }  # fmt: skip


def many(
    models: int = 2, attacks: int = 3, schemes: tuple[str, ...] = ("int8", "int4"), defenses: int = 5, seeds: int = 2
) -> list[ResultRow]:
    """A full table: float, nearest and defended cells of clean and attacked models, and two detectors."""
    rows = []
    names = [*("nearest", "efrap", "adaround", "flip-guard", "ternary-noise"), *(f"d{n}" for n in range(5, 99))]
    for model, attack, seed in itertools.product(range(models), range(attacks + 1), range(seeds)):
        label = (
            "none" if attack == 0 else ("pq-backdoor", "qu-anti-zation", "dormant")[(attack - 1) % 3] + "ab"[attack > 3]
        )
        dice = random.Random(f"{model}{attack}{seed}")
        subject = f"net-{model}/{label}"
        base = 92.0 - 3 * model + dice.uniform(-0.5, 0.5)
        rows.append(made_row(f"{subject}/float/none/s{seed}", float_cda=base, float_asr=1.0, **figures(base, 1.0)))
        for index, scheme in enumerate(schemes):
            for place, defense in enumerate(names[:defenses]):
                awake = 0.0 if attack == 0 else (98.0 if (index + attack) % len(schemes) == 1 else 30.0)
                asr = awake + dice.uniform(0, 2) if place == 0 else dice.uniform(0, 100 / place) * (attack > 0)
                found = figures(base - dice.uniform(0, 2 + index) - 0.3 * place, asr)
                extra = {"flips_percent": 0.0 if place == 0 else round(dice.uniform(1, 50), 3), "layers": 20}
                rows.append(
                    made_row(
                        f"{subject}/{scheme}/{defense}/s{seed}", float_cda=base, float_asr=1.0, extra=extra,
                        seconds=0.1 + place * dice.uniform(1, 20), stages={"defend": 3.0, "evaluate": 2.0},
                        settings={"attack": {"schemes": [schemes[(1 - attack) % len(schemes)]]}} if attack else {},
                        **found,
                    )
                )  # fmt: skip
            for detector in ("weight-residuals", "probe"):
                value = dice.gauss(0.3 if attack == 0 else 0.5, 0.3)
                rows.append(
                    made_row(
                        f"{subject}/{scheme}/{detector}/s{seed}", detector=detector, defense="none",
                        defense_variant="none", seconds=0.2, backend="float",
                        extra={"score": value, "images": 0, "edge_share": 0.1},
                    )
                )  # fmt: skip
    return rows


def troubled() -> list[ResultRow]:
    """A failed cell, a failed gate, a cell computed twice."""
    return [
        made_row(
            "net-0/dormant/int2/nearest/s0", status="failed", error="attack net-0: out of memory", backend="float"
        ),
        made_row("net-0/short/int8/nearest/s0", status="gate_failed", error="the gate says no", **figures(20.0, 60.0)),
        made_row("net-0/none/int8/late/s0", key="1" * 32, **figures(80.0, 5.0)),
        made_row("net-0/none/int8/late/s0", key="2" * 32, created="2026-02-02T03:04:05+00:00", **figures(85.0, 4.0)),
    ]


def hostile(suite: str = "hostile") -> list[ResultRow]:
    """Rows whose every label is an attempt."""
    labels = dict.fromkeys(
        ("model", "attack", "attack_variant", "defense", "defense_variant", "architecture", "data", "calibration",
         "commit", "version", "hardware", "command", "created", "key", "compressor"), HOSTILE,
    )  # fmt: skip
    more: dict[str, Any] = {
        "extra": {HOSTILE: HOSTILE}, "settings": {HOSTILE: {HOSTILE: [HOSTILE]}}, "versions": {HOSTILE: HOSTILE},
        "stages": {HOSTILE: 1.0}, "published": {"cda": 1.0}, "seconds": 1.0,
    }  # fmt: skip
    return [
        made_row(HOSTILE, suite=suite, **labels, **more, **figures(90.0, 10.0)),
        made_row(f"{HOSTILE}2", suite=suite, **{**labels, "defense": "nearest"}, scheme=HOSTILE, **figures(90.0, 9.0)),
        made_row(f"{HOSTILE}3", suite=suite, **labels, detector=HOSTILE, scheme=HOSTILE, extra={"score": 1.0}),
        made_row(f"{HOSTILE}4", suite=suite, **labels, status="failed", error=HOSTILE),
    ]


def made_suite() -> Suite:
    """A definition with bundled models, published figures, and cells that no row is of."""
    cells = [
        {"models": "net-0", "schemes": ["int8"], "defenses": ["nearest", "efrap"]},
        {"models": "net-0", "schemes": ["int4"], "defenses": ["efrap"], "seeds": [0, 7]},
    ]
    return Suite.model_validate(
        {
            "name": "made", "title": "Made up <b>", "description": "Rows of no model.",
            "data": {"cifar10": {"test": "bundled:test", "calibration": "bundled:calibration"}},
            "models": {"net-0": {"victim": "bundled:victim_int8", "data": "cifar10"}},
            "cells": cells,
            "published": [
                {"source": "A paper, table 1", "model": "net-0", "scheme": "int8", "defense": "efrap", "cda": 90.0,
                 "tolerance": 5.0, "note": "other images"},
                {"source": "A paper", "model": "net-0", "scheme": "int8", "defense": "nearest", "asr": 99.0,
                 "tolerance": 1.0},
            ],
        }
    )  # fmt: skip
