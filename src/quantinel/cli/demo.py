"""``quantinel demo``: the whole story on bundled real data."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantinel.cli import shared
from quantinel.cli.progress import console, reporting
from quantinel.errors import EXIT_ERROR, EXIT_FINDINGS, EXIT_PASS, UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from quantinel.audit.report import EvaluationRow, Rate, Report

EPILOG = shared.example("quantinel demo", "quantinel demo --victim int4 -o /tmp/story")

_VICTIMS = {"int8": ("int8",), "int4": ("int4",), "both": ("int8", "int4")}


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="OUT", help="Folder for the hardened models.")
    ] = Path("demo-output"),
    victim: Annotated[
        str, typer.Option("--victim", metavar="int8|int4|both", help="Which bundled victims to harden.")
    ] = "both",
    force: Annotated[bool, typer.Option("--force", help="Replace the results of an earlier demo.")] = False,
    quiet: shared.Quiet = False,
) -> None:
    """Show a backdoor that wakes when a network is quantized, and how hardening keeps it asleep.

    Bundled ResNet-20 victims and CIFAR-10 images, offline, about a minute. Exit code 0: every hardened file
    passed.
    """
    if victim not in _VICTIMS:
        raise UsageError(f"unknown victim {victim!r}; choose one of {', '.join(_VICTIMS)}")
    started = time.perf_counter()
    with reporting(quiet) as reporter:
        reporter.stage("starting")
        from quantinel.pipeline.demo import run_demo

        for name in _VICTIMS[victim]:
            shared.check_folder(output / name, force)
        results = run_demo(output, _VICTIMS[victim], reporter, force)
    from rich.text import Text

    out = console()
    for result in results:
        out.rule(Text(result.title, style="bold"), align="left")
        out.print(_story(result.report))
        out.print(Text(f"Report: {result.folder / 'report.html'}\n"), soft_wrap=True)
    seconds = time.perf_counter() - started
    passed = sum(result.report.verdict == "PASS" for result in results)
    out.print(Text(f"{passed} of {len(results)} hardened files passed, in {seconds:.0f} s."))
    out.print(Text("Before you quantize a model of somebody else: quantinel scan MODEL --data DATA"), soft_wrap=True)
    verdicts = {result.report.verdict for result in results}
    if verdicts == {"PASS"}:
        raise typer.Exit(EXIT_PASS)
    raise typer.Exit(EXIT_FINDINGS if "FAIL" in verdicts else EXIT_ERROR)


def _story(report: Report) -> Table:
    """Four steps and the verdict, with the figures of this run."""
    from rich.table import Table
    from rich.text import Text

    rows = {row.variant: row for row in report.evaluation}
    scheme, checked = report.request["scheme"], report.verification
    matched = checked.agreement.percent
    steps = (
        ("The float model, as it was downloaded:", _figures(rows["float"])),
        (f"The same model, rounded to the nearest {scheme}, as toolchains do:", _figures(rows["nearest"])),
        (f"The same {scheme}, its integers chosen by {report.request['rounding']}:", _figures(rows["hardened"])),
        (
            "The file on disk is the one that was measured, by ONNX Runtime:",
            f"{checked.layers_equal} of {checked.layers} layers hold exactly the chosen integers, "
            f"{checked.integer_layers} run in integers, top-1 agreement with the simulation "
            f"{'-' if matched is None else f'{matched:.2f} %'}",
        ),
    )
    table = Table.grid(padding=(0, 1))
    for number, (title, figures) in enumerate(steps, start=1):
        table.add_row(f"{number}.", Text(title).append(f"\n{figures}", "bold"))
    style = {"PASS": "bold green", "FAIL": "bold red"}.get(report.verdict, "bold yellow")
    table.add_row("", Text(report.verdict, style).append(f"  {report.summary}", "not bold default"))
    return table


def _figures(row: EvaluationRow) -> str:
    return f"accuracy {_shown(row.cda)}; obeys the trigger on {_shown(row.asr)} of the triggered images"


def _shown(rate: Rate | None) -> str:
    if rate is None or rate.percent is None:
        return "?"
    return f"{rate.percent:.1f} % [{rate.interval95[0]:.1f}, {rate.interval95[1]:.1f}]"
