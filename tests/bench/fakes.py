"""Suites as text, stages that cost nothing, and workers in this process."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import quantinel.bench.runner  # noqa: F401 (reads names of stages that a test replaces later)
from quantinel.audit.report import EvaluationRow, Rate
from quantinel.bench.cells import expand
from quantinel.bench.execution import execute
from quantinel.bench.messages import Finished, Request
from quantinel.bench.nodes import STAGES, Node
from quantinel.bench.rows import ResultRow, provenance
from quantinel.bench.store import Address
from quantinel.bench.suite import Suite
from quantinel.bench.suite_files import load_suite
from quantinel.bench.workers import Event
from quantinel.errors import GateError, InputError, Interrupted

HEAD = """
title = "Fake"
[run]
limit = 50
calibration_images = 16
[data.d]
test = "bundled:test"
calibration = "bundled:calibration"
train = "bundled:calibration"
[data.other]
test = "bundled:test"
train = "bundled:test"
[models.v]
victim = "bundled:victim_int8"
data = "d"
[models.fresh]
architecture = "vgg_small"
training = { epochs = 1 }
data = "d"
[attacks.short]
method = "pq-backdoor"
schemes = ["int4"]
settings = { plant_steps = 4 }
[defenses.quick]
method = "efrap-released"
settings = { iterations = 5 }
"""
ABOUT = {"architecture": "a", "attack": "none", "weights_sha256": "f" * 64}
"""What stages say of the model."""
SMALL = HEAD + '[[cells]]\nmodels = "v"\nschemes = "own"\ndefenses = "nearest"\n'


def write_suite(folder: Path, text: str, name: str = "fake") -> Suite:
    """A suite from its text."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.toml").write_text(text, "utf-8")
    return load_suite(folder / f"{name}.toml")


def ids(suite: Suite) -> list[str]:
    """Ids of all cells."""
    return [cell.id for cell in expand(suite)]


def make_row(cell: str = "m/none/int8/efrap/s0", **fields: Any) -> ResultRow:
    """A row."""
    common = {
        "suite": "fake", "cell": cell, "model": "m", "attack": "none", "attack_variant": "none", "defense": "efrap",
        "defense_variant": "efrap", "scheme": "int8", "compressor": "static-ptq", "architecture": "resnet20",
        "data": "d", "seed": 0, "backend": "onnxruntime", "key": "k",
    }  # fmt: skip
    return ResultRow(**{**common, **provenance({"a": 1}, "command"), **fields})


def node(stage: str, config: Mapping[str, Any], label: str = "", **inputs: Node) -> Node:
    """A stage of fake code with upstream stages by role."""
    return Node(stage, label or stage, {"threads": 1, **config}, (), {role: item.id for role, item in inputs.items()})


def plan_of(*nodes: Node) -> Any:
    """What a schedule needs of a plan."""
    return SimpleNamespace(nodes={item.id: item for item in nodes})


def request(store: Path, stage: str = "train", label: str = "label", **config: Any) -> Request:
    """A stage without inputs."""
    where = Address(stage, "content-" + "-".join(str(value) for value in config.values()), "code")
    return Request(where, label, {"threads": 1, **config}, {}, {}, {}, {}, str(store))


def fake_stage(job: Any) -> None:
    """Write what went in; ``config["do"]`` says how it ends."""
    do = job.config.get("do", "work")
    if do == "exit":
        os._exit(3)
    if do == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if do == "wait":
        job.progress("waiting", 1, 1)
        while not job.should_stop():
            time.sleep(0.01)
        raise Interrupted("stopped, checkpoint kept")
    values = {role: path / "value.json" for role, path in job.folders.items()}
    above = {role: json.loads(path.read_text("utf-8")) for role, path in values.items() if path.exists()}
    job.write_json("value.json", {"config": dict(job.config), "above": above})
    job.write_json(
        "evaluation.json",
        {"row": fake_figures().model_dump(mode="json"), "extra": {}, **ABOUT},
    )
    job.write_json(
        "detection.json",
        {
            "score": 1.5,
            "statistics": {"p": 2.0, "score": 9.0, "images": 9.0},
            "images": 0,
            **ABOUT,
        },
    )
    if do == "gate":
        raise GateError("it does not wake")
    if do == "fail":
        raise InputError("no such thing\nat all")
    if do == "bug":
        raise ZeroDivisionError("oops")


def fake_figures() -> EvaluationRow:
    """Figures of an evaluation."""
    rate = Rate(percent=90.0, interval95=(88.0, 92.0), hits=90, n=100)
    return EvaluationRow(variant="float", backend="float", cda=rate, asr=None, ta=None, agreement=None)


def register(name: str) -> str:
    """Make the fake stage importable under a stage's name, in whatever process this is called."""
    sys.modules[f"quantinel.bench.stages.{name}"] = SimpleNamespace(run=fake_stage)  # type: ignore[assignment]
    return name


class Registering:
    """Registers the fake stage in the process that unpickles it, and is a plain name there."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __str__(self) -> str:
        return self.name

    def __reduce__(self) -> tuple[Callable[[str], str], tuple[str]]:
        return register, (self.name,)


def use_fake_stages(monkeypatch: pytest.MonkeyPatch, *stages: str) -> None:
    """Replace stages by the fake one in this process."""
    for stage in stages or STAGES:
        monkeypatch.setitem(sys.modules, f"quantinel.bench.stages.{stage}", SimpleNamespace(run=fake_stage))


class InProcess:
    """Workers that run stages one after the other in this process, in the order in which they were given.

    Args:
        slots: how many may be under way.
        broken: labels of stages whose worker dies.
    """

    def __init__(self, slots: int = 1, broken: tuple[str, ...] = ()) -> None:
        self.slots, self.broken = slots, broken
        self.given: list[str] = []
        self.most = 0
        self.stopped = False
        self._queue: list[tuple[str, Request]] = []

    def submit(self, tag: str, request: Request) -> None:
        """Take a stage."""
        self.given.append(request.label)
        self._queue.append((tag, request))
        self.most = max(self.most, len(self._queue))

    def events(self, timeout: float) -> Iterator[Event]:
        """Run the first."""
        tag, request = self._queue.pop(0)
        if request.label in self.broken:
            yield Event(tag, finished=Finished("failed", "the worker process died (signal SIGKILL)"))
            return
        yield Event(tag, progress=("work", 0, 1))
        yield Event(tag, finished=execute(request, lambda: self.stopped))

    def stop(self) -> None:
        """Remember it."""
        self.stopped = True

    def close(self) -> None:
        """Nothing to end."""
