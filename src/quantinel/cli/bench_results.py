"""``quantinel bench table | diff | export | merge``: what is done with rows once they are there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quantinel.cli import shared
from quantinel.cli.bench import DEFAULT_RESULTS, Only, Results, SuiteName, load
from quantinel.errors import EXIT_FINDINGS, InputError, UsageError

Output = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="FILE", help="File to write or replace. [default: stdout]")
]

_EXAMPLES = {
    "table": (
        "quantinel bench table smoke",
        "quantinel bench table efrap --format latex -o efrap.tex",
        "quantinel bench table efrap --columns model,defense,asr,paper-asr --sort=-asr --only 'victim-*'",
        "quantinel bench table efrap --missing",
    ),
    "diff": (
        "quantinel bench diff earlier-results benchmarks/results",
        "quantinel bench diff benchmarks/results/efrap.jsonl@0519f33 benchmarks/results/efrap.jsonl@8947921 --json",
    ),
    "export": ("quantinel bench export -o rows.parquet", "quantinel bench export efrap smoke -o rows.parquet"),
    "merge": (
        "quantinel bench merge shard-1 shard-2 shard-3",
        "quantinel bench merge other-machine/efrap.jsonl --results benchmarks/results",
    ),
}


def _write(text: str, output: Path | None) -> None:
    from quantinel.files import write_file

    if output is None:
        print(text, end="")
    else:
        write_file(output, text.encode("utf-8"))


def _list(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def table(
    suite_name: SuiteName,
    results: Results = DEFAULT_RESULTS,
    form: Annotated[str, typer.Option("--format", "-f", metavar="markdown|latex|csv", help="Form.")] = "markdown",
    output: Output = None,
    columns: Annotated[
        str | None,
        typer.Option("--columns", metavar="A,B,...", help="Of the figures; an unknown name suggests the right one."),
    ] = None,
    sort: Annotated[
        str | None,
        typer.Option("--sort", metavar="A,-B,...", help="By columns of the figures, a minus for descending."),
    ] = None,
    only: Only = None,
    missing: Annotated[
        bool, typer.Option("--missing", help="Only lines with a cell that has not run, or failed.")
    ] = False,
    part: Annotated[
        list[str] | None,
        typer.Option(
            "--part", metavar="NAME", help="figures, detection or auc (repeatable). [default: all, of CSV the first]"
        ),
    ] = None,
) -> None:
    """A suite's rows as a table: figures beside those of papers, detectors, and below each how to recompute it.

    Seeds are averaged (smallest to largest in parentheses); one seed stands with its 95 % interval. Cells without a row
    are shown as not run, failures with their reason.
    """
    from quantinel.bench.formats import FORMATS
    from quantinel.bench.methods import known
    from quantinel.bench.row_file import read_rows
    from quantinel.bench.runner import select
    from quantinel.bench.tables import PARTS, TableOptions, suite_tables

    known(form, FORMATS, "format")
    for name in part or ():
        known(name, PARTS, "part")
    suite, cells = load(suite_name)
    select(cells, only or (), None)  # refuses a pattern without a cell
    path = results / f"{suite.name}.jsonl"
    rows = read_rows(path) if path.exists() else []
    options = TableOptions(_list(columns), _list(sort), tuple(only or ()), missing)
    found = suite_tables(suite, cells, rows, options)
    tables = [made for made in found if not part or made.part in part]
    if part and not tables:
        there = ", ".join(made.part for made in found) or "nothing"
        raise UsageError(f"{suite.name} has no table {' or '.join(part)} for this choice; it has {there}")
    if not tables:
        _write("Every cell was measured.\n" if form != "csv" else "", output)
        return
    _write(FORMATS[form](tables[:1] if form == "csv" and not part else tables), output)


def diff(
    before: Annotated[
        str,
        typer.Argument(
            metavar="A", help="Results folder, .jsonl file, or PATH@COMMIT (rows of a commit).", show_default=False
        ),
    ],
    after: Annotated[str, typer.Argument(metavar="B", help="The same, later.", show_default=False)],
    level: Annotated[
        float, typer.Option("--level", metavar="P", min=0.0, max=1.0, help="Of significance, for all tests together.")
    ] = 0.05,
    output: Output = None,
    as_json: shared.Json = False,
) -> None:
    """Compare two results cell by cell: figures with their intervals, states, settings, cells that came or went.

    Rates are tested with Fisher's exact test, corrected after Holm. Exit code 1: a rate differs significantly, or a
    cell that was measured lost its figures; 0: neither, whatever else changed.
    """
    import json

    from quantinel.bench.diff import compare, read_side
    from quantinel.bench.diff_formats import diff_dict, diff_markdown

    found = compare(read_side(before), read_side(after), level)
    _write(json.dumps(diff_dict(found), indent=2, allow_nan=False) + "\n" if as_json else diff_markdown(found), output)
    if found.significant:
        raise typer.Exit(EXIT_FINDINGS)


def export(
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FILE", help="Parquet file to write or replace.", show_default=False),
    ],
    suites: Annotated[
        list[str] | None, typer.Argument(metavar="[SUITE]...", help="Whose rows. [default: all that have rows]")
    ] = None,
    results: Results = DEFAULT_RESULTS,
) -> None:
    """Rows as one typed Parquet table, for pandas or DuckDB. Needs pyarrow.

    Intervals become columns (cda_low, cda_high); settings, extra, stages, devices, versions and published are JSON
    text; newest tells the rows that count from their history.
    """
    from quantinel.bench.parquet import write_parquet
    from quantinel.bench.row_file import read_results

    if not results.is_dir():
        raise InputError(f"the results folder {results} does not exist; run a suite first, or give --results")
    rows = [row for found in read_results(results, suites or None).values() for row in found]
    if not rows:
        raise InputError(f"{results} holds no rows; run a suite first, or give --results")
    write_parquet(output, rows)
    print(f"{len(rows)} rows in {output}")


def merge(
    sources: Annotated[
        list[Path],
        typer.Argument(metavar="SOURCE...", help="Result files (.jsonl) or folders of them.", show_default=False),
    ],
    results: Results = DEFAULT_RESULTS,
    as_json: shared.Json = False,
) -> None:
    """Put rows of shards and other machines into a results folder, each once.

    A line that is no row is refused with its file and number before anything is written; the incomplete last line of
    a writer that was killed is left out, and said so.
    """
    from quantinel.bench.merge import merge_results

    merged = merge_results(sources, results)
    if as_json:
        torn, ignored = ([str(path) for path in paths] for paths in (merged.torn, merged.ignored))
        counts = {"added": merged.added, "known": merged.known}
        shared.print_json({"results": str(results), **counts, "torn": torn, "ignored": ignored})
        return
    for suite, count in merged.added.items():
        print(f"{suite}: {count} new rows in {results / f'{suite}.jsonl'}")
    print(f"{merged.known} rows were there already")
    for path in merged.torn:
        print(f"{path}: the last line is incomplete and was left out")
    for path in merged.ignored:
        print(f"{path} holds no rows and was left alone")


def add_to(app: typer.Typer) -> None:
    """Register the verbs."""
    for function in (table, diff, export, merge):
        app.command(function.__name__, epilog=shared.example(*_EXAMPLES[function.__name__]))(function)
