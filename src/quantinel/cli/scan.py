"""``quantinel scan``: find what only wakes after compression, before it is deployed."""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantinel.cli import shared
from quantinel.cli.progress import Reporter, console, reporting
from quantinel.errors import EXIT_ERROR, EXIT_FINDINGS, EXIT_PASS, UsageError
from quantinel.files import check_file, write_file

if TYPE_CHECKING:
    from quantinel.audit.scan_report import ScanReport
    from quantinel.data.images import ImageSet
    from quantinel.model.loading import LoadedModel
    from quantinel.pipeline.scan_options import ScanOptions

EPILOG = shared.example(
    "quantinel scan model.pt2 --data photos/ --scheme int8 --scheme int4",
    "quantinel scan resnet.safetensors --arch resnet20 --data cifar10:DIR -f sarif -o scan.sarif",
    "quantinel scan checkpoint.safetensors --no-data --quiet",
    "quantinel scan model.pt2 --data photos/ --artefact model_int8.onnx --suppress accepted.toml",
)

_SUFFIXES = {".json": "json", ".sarif": "sarif", ".html": "html", ".htm": "html", ".xml": "junit"}
_FORMATS = ("table", "json", "sarif", "html", "junit")
_LEVELS = ("note", "warning", "error")


def scan(
    context: typer.Context,
    model: shared.Model,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="DATA",
            help="Images of the model's own kind, labels optional: a folder, FILE.npz, FILE.parquet, cifar10:DIR, "
            "bundled, ...; see `quantinel list data`.",
        ),
    ] = None,
    no_data: Annotated[
        bool, typer.Option("--no-data", help="Look at the weights only; never a PASS, a FAIL at most.")
    ] = False,
    schemes: Annotated[
        list[str] | None,
        typer.Option(
            "--scheme",
            metavar="NAME",
            help="Grid that the model may be deployed on (repeatable). [default: int8, or the victim's own]",
        ),
    ] = None,
    prunings: Annotated[
        list[str] | None,
        typer.Option(
            "--prune", metavar="NAME", help="How the model may be pruned (repeatable), e.g. prune-magnitude-0.5."
        ),
    ] = None,
    artefact: Annotated[
        Path | None,
        typer.Option("--artefact", metavar="FILE", help="Quantized file to compare with the model, e.g. an int8 ONNX."),
    ] = None,
    detectors: Annotated[
        str | None,
        typer.Option("--detectors", metavar="A,B", help="Run these only; no PASS without the required ones."),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format", "-f", metavar="table|json|sarif|html|junit", help="[default: table, or what -o ends in]"
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="File to write or replace. [default: stdout]")
    ] = None,
    fail_on: Annotated[
        str, typer.Option("--fail-on", metavar="note|warning|error", help="Least serious finding that ends with 1.")
    ] = "error",
    budget: Annotated[
        float | None,
        typer.Option("--budget", metavar="SECONDS", help="Time for the detectors; the report says what it cost."),
    ] = None,
    suppress: Annotated[
        Path | None,
        typer.Option("--suppress", metavar="FILE", help="Accepted findings (TOML: rule, statement, expires)."),
    ] = None,
    thresholds: Annotated[
        Path | None,
        typer.Option("--thresholds", metavar="FILE", help="Calibrated thresholds in place of the built-in ones."),
    ] = None,
    images: Annotated[int, typer.Option("--images", metavar="N", help="Use a random subset of N images.")] = 256,
    split: shared.Split = "test",
    arch: shared.Arch = None,
    factory: shared.Factory = None,
    num_classes: shared.NumClasses = None,
    input_shape: shared.InputShape = None,
    mean: shared.Mean = None,
    std: shared.Std = None,
    seed: shared.Seed = 0,
    quiet: shared.Quiet = False,
    as_json: shared.Json = False,
) -> None:
    """Look for a backdoor that sleeps in the float model and wakes when it is quantized or pruned.

    Needs no trigger and no labels; 256 images of the model's own kind are enough. Exit code 0: every required
    check ran and passed; 1: a finding at or above --fail-on; 2: error, or a required check could not judge; 3:
    nothing supported in the model; 4: wrong usage.
    """
    chosen = _format(form, output, as_json)
    if fail_on not in _LEVELS:
        raise UsageError(f"--fail-on is {fail_on!r}; choose one of {', '.join(_LEVELS)}")
    if (data is None) != no_data:
        raise UsageError("give --data DATA, or --no-data to look at the weights only; one of the two")
    if output is not None:
        check_file(output)
    model_options = shared.ModelOptions(arch, factory, num_classes, input_shape, mean, std)
    with reporting(quiet) as reporter:
        reporter.stage("starting")
        from quantinel.audit.suppressions import load_suppressions
        from quantinel.audit.thresholds import load_thresholds
        from quantinel.pipeline.scan import scan as run_scan
        from quantinel.pipeline.scan_options import ScanOptions
        from quantinel.quantization.pruning import parse_pruning
        from quantinel.quantization.scheme import QuantScheme, parse_scheme

        options = ScanOptions(
            schemes=tuple(parse_scheme(name) for name in schemes) if schemes else (QuantScheme(),),
            prunings=tuple(parse_pruning(name) for name in prunings or ()),
            detectors=None if detectors is None else tuple(name.strip() for name in detectors.split(",")),
            artefact=artefact,
            budget=math.inf if budget is None else budget,
            images=images,
            suppressions=() if suppress is None else load_suppressions(suppress),
            thresholds=load_thresholds(thresholds),
            seed=seed,
        )
        if no_data and model_options.given() is None and model.lower().endswith(".safetensors"):
            from quantinel.pipeline.scan_file import scan_file

            reporter.note("a file without its network: its tensors are looked at, and nothing else")
            report = scan_file(Path(model), options, command=shared.command_line(context), progress=reporter)
            raise _end(report, chosen, output, fail_on)
        loaded = model_options.load(model, reporter)
        options = _with_own_schemes(options, loaded, bool(schemes), reporter)
        found = _images(data, loaded, options, split, reporter)
        _note_few(found, options, reporter)
        report = run_scan(
            loaded,
            found,
            options,
            command=shared.command_line(context),
            harden_command=_harden_command(model, data or "DATA", model_options),
            progress=reporter,
        )
    raise _end(report, chosen, output, fail_on)


def _end(report: ScanReport, form: str, output: Path | None, fail_on: str) -> typer.Exit:
    """Write the report; the exit code that follows from its findings and its verdict."""
    from quantinel.audit.scan_verdict import reaches

    _write(report, form, output)
    if reaches(report.findings, fail_on):  # type: ignore[arg-type]
        return typer.Exit(EXIT_FINDINGS)
    return typer.Exit(EXIT_PASS if report.verdict == "PASS" else EXIT_ERROR)


def _format(form: str | None, output: Path | None, as_json: bool) -> str:
    """What to render: as asked, else as the file's name says, else a table.

    Raises:
        UsageError: an unknown format, or two.
    """
    if as_json and form not in (None, "json"):
        raise UsageError(f"--json and --format {form} contradict each other; give one")
    chosen = "json" if as_json else form
    if chosen is None:
        chosen = "table" if output is None else _SUFFIXES.get(output.suffix.lower(), "table")
    if chosen not in _FORMATS:
        raise UsageError(f"unknown format {chosen!r}; choose one of {', '.join(_FORMATS)}")
    return chosen


def _with_own_schemes(options: ScanOptions, loaded: LoadedModel, given: bool, reporter: Reporter) -> ScanOptions:
    """A victim directory is scanned on the grid that it was made for, unless another was asked for."""
    if given or loaded.victim is None or not loaded.victim.schemes:
        return options
    own = shared.victim_scheme(loaded.victim)
    reporter.note(f"a victim directory: using its own scheme, {own.name}")
    return dataclasses.replace(options, schemes=(own,))


def _images(
    data: str | None, loaded: LoadedModel, options: ScanOptions, split: str, reporter: Reporter
) -> ImageSet | None:
    if data is None:
        return None
    from quantinel.data.sources import load_images

    return load_images(
        data, input_shape=loaded.input_shape, split=split, limit=options.images, seed=options.seed,
        progress=reporter.images,
    )  # fmt: skip


def _note_few(images: ImageSet | None, options: ScanOptions, reporter: Reporter) -> None:
    """Say before the long work what the number of images rules out."""
    entries = () if options.thresholds is None else options.thresholds.entries
    needed = max((entry.images for entry in entries), default=0)
    if images is not None and len(images) < needed:
        reporter.note(
            f"{len(images)} images are fewer than the {needed} that thresholds were measured with: checks of behaviour "
            "stay undecided, and there is no PASS"
        )


def _harden_command(model: str, data: str, options: shared.ModelOptions) -> Callable[[str], str]:
    """The command that hardens what was scanned, by name of the scheme."""
    return lambda scheme: shlex.join(
        ["quantinel", "harden", model, *options.arguments(), "--data", data, "--scheme", scheme, "-o", "hardened"]
    )


def _write(report: ScanReport, form: str, output: Path | None) -> None:
    """The report in its format; a table on stdout beside a file, so that a log shows the verdict."""
    from quantinel.reports.render import SCAN_RENDERERS
    from quantinel.reports.scan_terminal import summary

    if form == "table":
        if output is None:
            console().print(summary(report))
            return
        from quantinel.reports.terminal_parts import as_text

        write_file(output, as_text(summary(report)).encode("utf-8"))
        return
    text = SCAN_RENDERERS[form](report)
    if output is None:
        print(text, end="" if text.endswith("\n") else "\n")
        return
    write_file(output, text.encode("utf-8"))
    out = console()
    out.print(summary(report))
    out.print(f"Report: {output}", markup=False, soft_wrap=True)
