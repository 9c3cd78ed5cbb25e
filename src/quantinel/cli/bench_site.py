"""``quantinel bench site``: the leaderboard as static pages."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantinel.cli import bench, shared
from quantinel.cli.progress import console
from quantinel.errors import UsageError

if TYPE_CHECKING:
    from quantinel.bench.suite import Suite


EPILOG = shared.example("quantinel bench site -o site", "quantinel bench site smoke efrap -o site --force")


def site(
    suite_names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SUITE]...", help="Names or .toml files. [default: all that have rows]", show_default=False
        ),
    ] = None,
    results: bench.Results = bench.DEFAULT_RESULTS,
    store: bench.StoreFolder = None,
    root: bench.DataRoot = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder to write.")] = Path("site"),
    force: shared.Force = False,
    as_json: shared.Json = False,
) -> None:
    """Write a leaderboard per suite and a page per cell, to be opened from disk or served by anything.

    Logs and pictures come from the store, as far as it holds them.
    """  # fmt: skip
    from quantinel.bench.row_file import read_results
    from quantinel.bench.site.build import MARKER, build_site
    from quantinel.bench.store import Store
    from quantinel.files import check_output

    check_output(output, force)
    if output.is_dir() and any(output.iterdir()) and not (output / MARKER).is_file():
        raise UsageError(f"{output} holds files that Quantinel did not write, --force spares it; choose another output")
    if suite_names:
        suites = {Path(name).stem if name.endswith(".toml") else name: _definition(name, True) for name in suite_names}
        with_rows = [name for name in suites if (results / f"{name}.jsonl").is_file()]
        rows = read_results(results, with_rows)
    else:
        rows = read_results(results)
        suites = {name: _definition(name, False) for name in rows}
        if not rows:
            raise UsageError(f"{results} holds no rows; run a suite first, for example `quantinel bench run smoke`")
    folder = bench.store_folder(store)
    made = build_site(
        suites, rows, Store(folder) if folder.is_dir() else None, output, overwrite=force, root=bench.data_root(root)
    )
    if as_json:
        shared.print_json(
            {"index": str(made.index), "suites": made.suites, "cells": made.cells, "with_logs": made.evidence}
        )
        return
    out = console()
    out.print(
        f"{made.suites} suite{'' if made.suites == 1 else 's'}, {made.cells} cells, {made.evidence} of them with logs "
        f"from the store: {made.index}",
        markup=False, soft_wrap=True,
    )  # fmt: skip


def _definition(name: str, asked: bool) -> Suite | None:
    """A suite by name; None for rows whose suite is not at hand, unless it was asked for and has no rows either."""
    from quantinel.bench.suite_files import find_suite, load_suite, suite_names

    folder = bench.SUITES if bench.SUITES.is_dir() else None
    if not name.endswith(".toml") and name not in suite_names(folder) and not asked:
        return None
    return load_suite(find_suite(name, folder), name)
