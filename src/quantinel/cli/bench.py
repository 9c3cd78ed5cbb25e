"""``quantinel bench``: suites, run and looked at."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantinel.cli import shared
from quantinel.cli.progress import console
from quantinel.errors import EXIT_ERROR, UsageError

if TYPE_CHECKING:
    from quantinel.bench.cells import Cell
    from quantinel.bench.runner import Summary
    from quantinel.bench.schedule import Result
    from quantinel.bench.suite import Suite
    from quantinel.bench.workers import Workers

app = typer.Typer(
    help="Attacks x defenses x schemes x models x data x seeds: run suites and publish their tables.",
    rich_markup_mode=None,
    no_args_is_help=False,
)

SUITES = Path("benchmarks", "suites")
DATA_ROOT_VARIABLE = "QUANTINEL_DATA"
STORE_VARIABLE = "QUANTINEL_STORE"

SuiteName = Annotated[
    str, typer.Argument(metavar="SUITE", help="Name (benchmarks/suites, or bundled: smoke) or a .toml file.",
                        show_default=False)
]  # fmt: skip
Results = Annotated[Path, typer.Option("--results", metavar="DIR", help="Folder of the rows, SUITE.jsonl.")]
StoreFolder = Annotated[
    Path | None,
    typer.Option("--store", metavar="DIR", help="Stage results. [default: $QUANTINEL_STORE or ~/.cache/quantinel]"),
]
DataRoot = Annotated[
    Path | None,
    typer.Option("--data-root", metavar="DIR", help="Stands for {root} in suites. [default: $QUANTINEL_DATA]"),
]
Only = Annotated[
    list[str] | None,
    typer.Option("--only", metavar="CELL", help="Cells by id or pattern, such as 'victim-int8/*' (repeatable)."),
]
Shard = Annotated[
    str | None, typer.Option("--shard", metavar="I/N", help="Only share I of N, the same on every machine.")
]
WorkerCount = Annotated[
    int | None,
    typer.Option("--workers", metavar="N", min=1, help="Stages at a time. [default: one per core and thread]"),
]
DEFAULT_RESULTS = Path("benchmarks", "results")


def store_folder(given: Path | None) -> Path:
    """Where stage results lie."""
    if given is not None:
        return given
    if os.environ.get(STORE_VARIABLE):
        return Path(os.environ[STORE_VARIABLE])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quantinel"


def data_root(given: Path | None) -> Path | None:
    """What ``{root}`` in suites stands for, as an absolute path: workers may run in another folder.

    Raises:
        UsageError: no such folder.
    """
    root = given or (Path(os.environ[DATA_ROOT_VARIABLE]) if os.environ.get(DATA_ROOT_VARIABLE) else None)
    if root is not None and not root.is_dir():
        raise UsageError(f"the data root {root} is not a folder; check --data-root (or {DATA_ROOT_VARIABLE})")
    return None if root is None else root.absolute()


def usable_cores() -> int:
    """Cores that this process may use; batch systems grant fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load(
    name: str, only: list[str] | None = None, shard: str | None = None, root: Path | None = None
) -> tuple[Suite, list[Cell]]:
    """A checked suite and the chosen ones of its cells."""
    suite = read(name)
    return suite, chosen_cells(suite, only, shard, root)


def read(name: str) -> Suite:
    """A suite's file, before its names are checked."""
    from quantinel.bench.suite_files import find_suite, load_suite

    return load_suite(find_suite(name, SUITES if SUITES.is_dir() else None), name)


def chosen_cells(suite: Suite, only: list[str] | None, shard: str | None, root: Path | None) -> list[Cell]:
    """The chosen ones of a suite's cells, every name checked."""
    from quantinel.bench.cells import expand
    from quantinel.bench.published import check_published
    from quantinel.bench.runner import select

    cells = expand(suite, root)
    check_published(suite, cells)
    return select(cells, only or (), shard)


@app.command(
    "run",
    epilog=shared.example(
        "quantinel bench run smoke",
        "quantinel bench run efrap --data-root DATA --workers 8",
        "quantinel bench run efrap --data-root DATA --only 'victim-int8/*' --shard 1/4",
    ),
)
def run(
    suite_name: SuiteName,
    results: Results = DEFAULT_RESULTS,
    store: StoreFolder = None,
    root: DataRoot = None,
    only: Only = None,
    shard: Shard = None,
    workers: WorkerCount = None,
    ray: Annotated[
        str | None,
        typer.Option("--ray", metavar="ADDRESS", help="Run on Ray: address of a cluster, auto, or local."),
    ] = None,
    device: Annotated[str, typer.Option("--device", metavar="NAME", help="Of training: cpu, cuda or cuda:N.")] = "cpu",
    reuse: Annotated[
        list[str] | None,
        typer.Option(
            "--reuse", metavar="STAGE", help="Take stored results of train or attack whatever code made them."
        ),
    ] = None,
    deadline: Annotated[
        float | None,
        typer.Option("--deadline", metavar="SECONDS", min=1.0, help="Stop after this time and keep checkpoints."),
    ] = None,
    mlflow: Annotated[
        str | None, typer.Option("--mlflow", metavar="URI", help="Also log every new row to an MLflow server.")
    ] = None,
    quiet: shared.Quiet = False,
    as_json: shared.Json = False,
) -> None:
    """Run a suite: whatever is stored is taken, everything else is computed once, and every cell becomes a row.

    Interrupt it at any time; the same command goes on. Exit code 0: every cell has figures (or a gate that failed, as
    a row that says so); 2: cells failed, or are open after an interruption.
    """
    from quantinel.cli.bench_progress import watching

    root = data_root(root)
    suite = read(suite_name)
    from quantinel.bench.nodes import STAGES
    from quantinel.cli.stopping import stop_requests

    for stage in reuse or ():
        if stage not in STAGES:
            raise UsageError(f"--reuse {stage}: there is no such stage; choose one of {', '.join(STAGES)}")
    until = None if deadline is None else time.monotonic() + deadline
    log = None
    if mlflow is not None:
        from quantinel.bench.mlflow_log import MlflowLog

        log = MlflowLog(mlflow, suite.name)
    started = time.monotonic()
    with (
        stop_requests() as should_stop,
        _workers(ray, workers, suite.run.threads) as pool,
        watching(quiet) as watcher,
    ):
        cells = chosen_cells(suite, only, shard, root)
        from quantinel.bench.runner import Options, run_suite

        options = Options(results, store_folder(store), root, device, frozenset(reuse or ()), until, should_stop)
        summary = run_suite(suite, cells, options, pool, watcher, None if log is None else log.add)
    _tell(suite, summary, options, time.monotonic() - started, as_json)
    if summary.open or any(row.status == "failed" for row in summary.rows):
        raise typer.Exit(EXIT_ERROR)


@contextmanager
def _workers(ray: str | None, count: int | None, threads: int) -> Iterator[Workers]:
    from quantinel.bench.workers import ProcessWorkers

    if ray is not None:
        from quantinel.bench.ray_workers import RayWorkers

        pool: Workers = RayWorkers(ray, count, threads)
    else:
        pool = ProcessWorkers(count or max(1, usable_cores() // threads), threads)
        pool.warm()
    try:
        yield pool
    finally:
        pool.close()


def _tell(suite: Suite, summary: Summary, options: object, seconds: float, as_json: bool) -> None:
    from quantinel.bench.runner import Options

    assert isinstance(options, Options)
    counts = {status: sum(row.status == status for row in summary.rows) for status in ("ok", "gate_failed", "failed")}
    path = options.results / f"{suite.name}.jsonl"
    if as_json:
        shared.print_json(
            {
                "suite": suite.name, "cells": len(summary.rows) + len(summary.open), **counts,
                "open": [cell.id for cell in summary.open], "rows_added": summary.added, "stages": summary.stages,
                "stages_run": summary.ran, "stage_seconds": round(summary.busy_seconds, 2),
                "seconds": round(seconds, 2), "results": str(path),
                "errors": {row.cell: row.error for row in summary.rows if row.status == "failed"},
            }
        )  # fmt: skip
        return
    from rich.markup import escape

    from quantinel.bench.commands import command

    out = console()
    parts = [f"{counts['ok']} cells measured"]
    parts += [f"{counts['gate_failed']} of attacks that made no victim"] if counts["gate_failed"] else []
    parts += [f"{counts['failed']} failed"] if counts["failed"] else []
    parts += [f"{len(summary.open)} open"] if summary.open else []
    out.print(f"{suite.name}: {', '.join(parts)}; {summary.ran} of {summary.stages} stages ran, {seconds:.0f} s")
    if summary.rows:
        out.print(f"{summary.added} new rows in {path}", markup=False, soft_wrap=True)
    for error in dict.fromkeys(row.error for row in summary.rows if row.status == "failed"):
        cells = [row.cell for row in summary.rows if row.status == "failed" and row.error == error]
        others = f" and {len(cells) - 1} more cells" if len(cells) > 1 else ""
        out.print(f"[bold]failed[/bold] {escape(cells[0])}{others}: {escape(str(error))}", soft_wrap=True)
    if any(row.status == "failed" for row in summary.rows):
        out.print(f"Logs of failures: {options.store / 'failed'}", markup=False, soft_wrap=True)
    if summary.open:
        out.print("Run the same command again to go on.")
    else:
        there = "" if options.results == DEFAULT_RESULTS else f" {shlex.join(['--results', str(options.results)])}"
        out.print(f"See: {command(suite, 'table')}{there}", markup=False, soft_wrap=True)


@app.command(
    "plan",
    epilog=shared.example("quantinel bench plan smoke", "quantinel bench plan efrap --data-root DATA --workers 16"),
)
def plan(
    suite_name: SuiteName,
    store: StoreFolder = None,
    root: DataRoot = None,
    only: Only = None,
    shard: Shard = None,
    workers: WorkerCount = None,
    cells_too: Annotated[bool, typer.Option("--cells", help="List the ids of the cells.")] = False,
    as_json: shared.Json = False,
) -> None:
    """What a run would do: cells, stages, what is stored, and an estimate of the time from stored costs."""
    root = data_root(root)
    suite, cells = load(suite_name, only, shard, root)
    from quantinel.bench.estimates import makespan
    from quantinel.bench.nodes import STAGES
    from quantinel.bench.plan import Plan
    from quantinel.bench.schedule import Schedule
    from quantinel.bench.store import Store

    made = Plan(suite, cells, root)
    schedule = Schedule(made, Store(store_folder(store)), None)
    schedule.run(lambda _: None)
    missing = schedule.estimates()
    slots = workers or max(1, usable_cores() // suite.run.threads)
    stages = [
        {
            "stage": stage,
            "stages": sum(node.stage == stage for node in made.nodes.values()),
            "to_run": sum(made.nodes[name].stage == stage for name in missing),
            "seconds": round(sum(value for name, value in missing.items() if made.nodes[name].stage == stage), 1),
        }
        for stage in STAGES
    ]
    total = {
        "suite": suite.name, "cells": len(cells), "workers": slots, "work_seconds": round(sum(missing.values()), 1),
        "wall_seconds": round(makespan(made, missing, slots), 1), "stages": stages,
    }  # fmt: skip
    errors = list(dict.fromkeys(result.error for result in schedule.results.values() if _impossible(result)))
    if as_json:
        shared.print_json({**total, "cell_ids": [cell.id for cell in cells], "errors": errors})
        _refuse(errors)
        return
    from rich.table import Table

    out = console()
    table = Table(title=f"{suite.name}: {len(cells)} cells", title_justify="left", title_style="bold")
    for name in ("stage", "stages", "to run", "estimated s"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for row in stages:
        if row["stages"]:
            table.add_row(*(str(value) for value in row.values()))
    out.print(table)
    out.print(f"{total['work_seconds']} s of work, {total['wall_seconds']} s on {slots} workers")
    for cell in cells if cells_too else ():
        out.print(cell.id, markup=False, soft_wrap=True)
    for error in errors:
        out.print(f"cannot run: {error}", markup=False, soft_wrap=True)
    _refuse(errors)


def _impossible(result: Result) -> bool:
    """Whether a stage failed before any work; one that is stored with a gate that failed did not."""
    return result.folder is None and result.error is not None


def _refuse(errors: list[str | None]) -> None:
    if errors:
        raise typer.Exit(EXIT_ERROR)
