"""Run a suite: every cell becomes a row, whatever happens to the others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from quantinel.audit.report import EvaluationRow
from quantinel.bench.cells import FLOAT, NONE, Cell, methods_of
from quantinel.bench.commands import command
from quantinel.bench.deployment import parse_deployment
from quantinel.bench.methods import known
from quantinel.bench.nodes import TRAINING
from quantinel.bench.plan import Plan, Work
from quantinel.bench.published import published_for
from quantinel.bench.resolved import resolved
from quantinel.bench.row_file import RowFile
from quantinel.bench.rows import Backend, ResultRow, environment, measured, provenance, sha256_of
from quantinel.bench.schedule import Result, Schedule, Watcher
from quantinel.bench.stages.detect import DETECTION
from quantinel.bench.stages.evaluate import EVALUATION
from quantinel.bench.stages.job import never
from quantinel.bench.store import Store, read_json
from quantinel.bench.suite import Method, Suite
from quantinel.bench.workers import Workers
from quantinel.errors import UsageError


@dataclass(frozen=True)
class Options:
    """How a suite is run.

    Attributes:
        results: folder of the rows.
        store: folder of the stage results.
        root: data root, or None.
        device: where training runs.
        reuse: stages whose stored results are taken whatever code made them.
        until: monotonic time at which to stop; None for never.
        should_stop: polled; once it is true the run keeps checkpoints and ends.
    """

    results: Path
    store: Path
    root: Path | None = None
    device: str = "cpu"
    reuse: frozenset[str] = frozenset()
    until: float | None = None
    should_stop: Callable[[], bool] = never


@dataclass
class Summary:
    """What a run did.

    Attributes:
        rows: of all cells that are over, in the order of the suite.
        added: how many of them were not in the results file.
        stages: stages in the plan; ran: those that were not stored.
        busy_seconds: time of those that ran.
        open: cells without a row (interrupted).
    """

    rows: list[ResultRow] = field(default_factory=list)
    added: int = 0
    stages: int = 0
    ran: int = 0
    busy_seconds: float = 0.0
    open: list[Cell] = field(default_factory=list)


def select(cells: Sequence[Cell], only: Sequence[str], shard: str | None) -> list[Cell]:
    """The cells to run.

    Args:
        cells: of the suite.
        only: patterns of cell ids (``*`` and ``?``); all if empty.
        shard: "i/n", 1 <= i <= n: a share that is the same on every machine; cells that share a trained model stay
            together as long as there are enough models to go round.

    Raises:
        UsageError: a pattern without a cell, or no such shard.
    """
    chosen = [cell for cell in cells if not only or any(fnmatchcase(cell.id, pattern) for pattern in only)]
    for pattern in only:
        if not any(fnmatchcase(cell.id, pattern) for cell in cells):
            known(pattern, [cell.id for cell in cells], "cell")
    if shard is None:
        return chosen
    index, _, count = shard.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise UsageError(f"--shard is {shard!r}; give i/n with i from 1 to n, for example 2/8")
    groups = list(dict.fromkeys(cell.group for cell in chosen))
    if len(groups) >= int(count):
        own = set(groups[int(index) - 1 :: int(count)])
        return [cell for cell in chosen if cell.group in own]
    return chosen[int(index) - 1 :: int(count)]


def run_suite(
    suite: Suite,
    cells: list[Cell],
    options: Options,
    workers: Workers,
    watcher: Watcher | None = None,
    stored: Callable[[ResultRow], None] | None = None,
) -> Summary:
    """Run cells and append a row for each as soon as its figures are there.

    Args:
        suite: validated.
        cells: of this suite, see `select`.
        options: places, device, limits.
        workers: where stages run; the caller closes them.
        watcher: learns what happens.
        stored: called with every row that was appended.

    Raises:
        QuantinelError: data that the suite needs is not there, or rows cannot be written.
    """
    plan = Plan(suite, cells, options.root)
    schedule = Schedule(
        plan, Store(options.store), workers, device=options.device, reuse=options.reuse,
        watcher=watcher, until=options.until, should_stop=options.should_stop,
    )  # fmt: skip
    file = RowFile(options.results / f"{suite.name}.jsonl")
    file.refresh()  # a damaged file is an error before any work
    rows: dict[Cell, ResultRow] = {}
    summary = Summary(stages=len(plan.nodes))
    by_node: dict[str, list[Work]] = defaultdict(list)
    for work in plan.work:
        for name in {work.result, work.floating} - {None}:
            by_node[str(name)].append(work)

    def settled(name: str) -> None:
        over = [
            work
            for work in by_node[name]
            if work.cell not in rows
            and work.result in schedule.results
            and (work.floating is None or work.floating in schedule.results)
        ]
        new = [row_of(suite, plan, work, schedule.results) for work in over]
        rows.update((work.cell, row) for work, row in zip(over, new, strict=True))
        for row in file.append(new):
            summary.added += 1
            if stored is not None:
                stored(row)

    try:
        schedule.run(settled)
    finally:
        summary.rows = [rows[cell] for cell in cells if cell in rows]
        summary.open = [cell for cell in cells if cell not in rows]
        summary.ran = sum(not result.cached and result.key != "" for result in schedule.results.values())
        summary.busy_seconds = schedule.busy_seconds
    return summary


def row_of(suite: Suite, plan: Plan, work: Work, results: dict[str, Result]) -> ResultRow:
    """The row of a cell whose stages are over."""
    cell, result = work.cell, results[work.result]
    config, methods = resolved(suite, cell), methods_of(suite, cell)
    behind = {plan.nodes[name].stage: stored for name in work.chain if (stored := results[name].stored) is not None}
    seconds = {stage: stored.seconds for stage, stored in behind.items()}
    devices = {stage: stored.environment.get("device") for stage, stored in behind.items() if stage in TRAINING}
    model = suite.models[cell.model]
    common: dict[str, Any] = {
        "suite": suite.name,
        "cell": cell.id,
        "model": cell.model,
        "attack": methods["attack"].method,
        "attack_variant": cell.attack,
        "defense": methods["defense"].method,
        "defense_variant": cell.defense,
        "detector": methods["detector"].method if "detector" in methods else None,
        "scheme": cell.scheme,
        "compressor": NONE if cell.scheme == FLOAT else parse_deployment(cell.scheme).compressor,
        "calibration": cell.calibration,
        "architecture": model.architecture or "unknown",
        "data": model.data,
        "seed": cell.seed,
        "published": published_for(suite, cell),
        "stages": seconds,
        "devices": {stage: device for stage, device in devices.items() if device is not None},
        "seconds": next((seconds[stage] for stage in ("detect", "repair", "defend") if stage in seconds), None),
        "settings": _settings(methods),
        "key": result.key or sha256_of([cell.id, result.error])[:32],
        **provenance(config, command(suite, "run", [cell.id])),
    }
    stays_float = cell.scheme == FLOAT or cell.detector is not None or parse_deployment(cell.scheme).grid is None
    backend: Backend = "float" if stays_float else suite.run.backend
    if result.folder is None or result.stored is None:
        return ResultRow(**common, backend=backend, status="failed", error=result.error)
    made = {name: result.stored.environment.get(name) for name in environment()}
    status = {"status": "ok" if result.error is None else "gate_failed", "error": result.error}
    if cell.detector is not None:
        found = read_json(result.folder / DETECTION)
        figures: dict[str, Any] = {"backend": backend}
        extra = {**found["statistics"], "score": found["score"], "images": found["images"]}
    else:
        assert work.floating is not None
        found = read_json(result.folder / EVALUATION)
        base = results[work.floating].folder
        assert base is not None
        floating = EvaluationRow.model_validate(read_json(base / EVALUATION)["row"])
        figures, extra = measured(EvaluationRow.model_validate(found["row"]), floating), found["extra"]
    about = {name: found[name] for name in ("architecture", "attack", "weights_sha256")}
    return ResultRow(**{**common, **made, **status, **about, **figures, "extra": extra})


def _settings(methods: Mapping[str, Method]) -> dict[str, dict[str, Any]]:
    """Options that the suite sets, by kind of method."""
    found = {kind: dict(method.settings) for kind, method in methods.items() if method.settings}
    schemes = getattr(methods["attack"], "schemes", [])
    if schemes:
        found.setdefault("attack", {})["schemes"] = list(schemes)
    return found
