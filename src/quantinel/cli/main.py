"""``quantinel``: the entry point. Nothing heavy is imported here; every verb imports what it needs when it runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, cast

import typer
import typer.main

from quantinel.cli import (
    attack,
    bench,
    bench_clean,
    bench_results,
    bench_site,
    demo,
    evaluate,
    harden,
    report,
    scan,
    verify,
)
from quantinel.cli import list as list_verb
from quantinel.cli.guard import guarded
from quantinel.errors import EXIT_PASS, EXIT_USAGE, UsageError
from quantinel.plugins import load_plugin

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
for verb, function, epilog, short_help in (
    ("harden", harden.harden, harden.EPILOG, "Choose the integers, emit the file, verify it, report."),
    ("scan", scan.scan, scan.EPILOG, "Find what only wakes after compression; a gate for pipelines."),
    ("verify", verify.verify, verify.EPILOG, "Re-open a hardened folder and prove what is in it."),
    ("evaluate", evaluate.evaluate, evaluate.EPILOG, "Measure accuracy and attack success."),
    ("report", report.report, report.EPILOG, "Render a report again."),
    ("list", list_verb.list_names, list_verb.EPILOG, "List methods, schemes, backends and data sources."),
    ("attack", attack.attack, attack.EPILOG, "Make a victim, as test material for defenses."),
    ("demo", demo.demo, demo.EPILOG, "Show the whole story on bundled data."),
):
    app.command(verb, epilog=epilog, short_help=short_help)(function)

bench.app.command("site", epilog=bench_site.EPILOG)(bench_site.site)
bench.app.command("clean", epilog=bench_clean.EPILOG)(bench_clean.clean)
bench_results.add_to(bench.app)
app.add_typer(bench.app, name="bench", short_help="Run suites and publish their tables.")

# Typer brings its own copy of click since 0.2x and used the real one before; the class is the same in both.
_ClickUsageError = cast(type[typer.BadParameter], typer.BadParameter.__base__)


def _version(asked: bool) -> None:
    if asked:
        from importlib import metadata

        print(f"quantinel {metadata.version('quantinel')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    plugins: Annotated[
        list[Path] | None,
        typer.Option("--plugin", metavar="FILE", help="Python file with methods of your own (repeatable); it is run."),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Finds, removes and measures backdoors that sleep in a float network and wake when it is quantized.

    `quantinel demo` shows it on bundled data; `quantinel VERB --help` has examples. Exit codes: 0 pass, 1 findings,
    2 error or no verdict, 3 nothing supported in the input, 4 wrong usage.
    """
    for plugin in plugins or ():
        load_plugin(plugin)
    if context.invoked_subcommand is None:
        print(context.get_help(), file=sys.stderr)
        raise typer.Exit(EXIT_USAGE)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: without the program's name; None takes those of the process.

    Returns:
        The exit code.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    return guarded(lambda: _dispatch(given))


def _dispatch(arguments: list[str]) -> int:
    command = typer.main.get_command(app)
    try:
        with command.make_context("quantinel", list(arguments), obj=arguments) as context:
            command.invoke(context)
    except typer.Exit as finished:
        return finished.exit_code
    except _ClickUsageError as error:
        where = "quantinel" if error.ctx is None else error.ctx.command_path
        raise UsageError(f"{error.format_message()} Try `{where} --help`") from error
    return EXIT_PASS
