"""``quantinel harden``: choose the integers, emit the file, verify it, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quantinel.cli import shared
from quantinel.cli.progress import console, reporting
from quantinel.errors import UsageError

EPILOG = shared.example(
    "quantinel harden model.pt2 --data photos/ -o out",
    "quantinel harden resnet.safetensors --arch resnet20 --data cifar10:DIR --scheme int4 -o out",
    "quantinel harden model.pt2 --data test.npz --trigger patch.json --target 0 -o out",
    "quantinel harden model.pt2 --no-data -o out",
)


def harden(
    context: typer.Context,
    model: shared.Model,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="Folder to create.")],
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="DATA",
            help="Images: a folder (one sub-folder per class), FILE.npz, FILE.parquet, cifar10:DIR, bundled, ...; see "
            "`quantinel list data`. Labels are optional.",
        ),
    ] = None,
    no_data: Annotated[
        bool,
        typer.Option(
            "--no-data",
            help="Calibrate on synthetic images: weaker, and nothing is evaluated, so no verdict (exit code 2).",
        ),
    ] = False,
    scheme: Annotated[
        str | None,
        typer.Option(
            "--scheme",
            metavar="NAME",
            help="Deployment grid, e.g. int4-weight-only; see `quantinel list schemes`. [default: int8, or the "
            "victim's own]",
        ),
    ] = None,
    rounding: Annotated[
        str, typer.Option("--rounding", metavar="NAME", help="How to choose integers; see `quantinel list defenses`.")
    ] = "invariant",
    settings: shared.Settings = None,
    backend: Annotated[
        str, typer.Option("--backend", metavar="NAME", help="Storage profile; see `quantinel list backends`.")
    ] = "onnxruntime-x86",
    calibration: shared.CalibrationData = None,
    calibration_split: shared.CalibrationSplit = "train",
    calibration_images: shared.CalibrationImages = 256,
    trigger: shared.TriggerFile = None,
    target: shared.Target = None,
    split: shared.Split = "test",
    limit: shared.Limit = None,
    arch: shared.Arch = None,
    factory: shared.Factory = None,
    num_classes: shared.NumClasses = None,
    input_shape: shared.InputShape = None,
    mean: shared.Mean = None,
    std: shared.Std = None,
    seed: shared.Seed = 0,
    no_probe: Annotated[
        bool,
        typer.Option(
            "--no-probe", help="Store no calibration images in OUT (`verify` then needs --data to run the file)."
        ),
    ] = False,
    force: shared.Force = False,
    quiet: shared.Quiet = False,
    as_json: shared.Json = False,
) -> None:
    """Quantize a model so that a backdoor in it stays asleep, and prove what was written.

    Chooses the integers, writes an ONNX file with exactly those, re-opens it, runs it with ONNX Runtime, and
    reports. Exit code 0: the file verifies and passes; 1: do not deploy it; 2: error or no verdict; 3: nothing
    supported in the model; 4: wrong usage.
    """
    if (data is None) != no_data:
        raise UsageError("give --data DATA, or --no-data to calibrate on synthetic images; one of the two")
    if no_data and calibration is not None:
        raise UsageError("--no-data makes its own calibration images; give --data as well as --calibration, or neither")
    model_options = shared.ModelOptions(arch, factory, num_classes, input_shape, mean, std)
    with reporting(quiet) as reporter:
        reporter.stage("starting")
        from quantinel.backends.onnx_qdq import profile_named
        from quantinel.cli.settings import build
        from quantinel.defenses import DEFENSES, rounding_method
        from quantinel.pipeline.harden import HardenOptions
        from quantinel.pipeline.harden import harden as run_harden
        from quantinel.quantization.scheme import QuantScheme, parse_scheme

        profile_named(backend)
        rounding_method(rounding)
        method = build(DEFENSES[rounding].build, settings or (), rounding)
        chosen_scheme = None if scheme is None else parse_scheme(scheme)
        known = shared.read_trigger(trigger, target)
        shared.check_folder(output, force)
        loaded = model_options.load(model, reporter)
        if loaded.victim is not None:
            if known is None and data is not None:
                known = shared.victim_trigger(loaded)
                if known is not None:
                    reporter.note(f"a victim directory: testing its own trigger, target class {known[1]}")
            if chosen_scheme is None:
                chosen_scheme = shared.victim_scheme(loaded.victim)
                reporter.note(f"a victim directory: using its own scheme, {chosen_scheme.name}")
        images, separate = None, None
        if data is not None:
            images, separate = shared.load_two_sets(
                data, calibration, calibration_split, calibration_images,
                input_shape=loaded.input_shape, split=split, limit=limit, seed=seed, reporter=reporter,
            )  # fmt: skip
        reporter.stage("tracing the model")
        report = run_harden(
            loaded,
            images,
            output,
            HardenOptions(
                chosen_scheme or QuantScheme(), method, backend, calibration_images, seed, not no_probe, force
            ),
            calibration=separate,
            trigger=None if known is None else known[0],
            target_class=None if known is None else known[1],
            command=shared.command_line(context),
            progress=reporter,
        )
    if as_json:
        print(report.model_dump_json(indent=2))
    else:
        from quantinel.reports.terminal import summary

        out = console()
        out.print(summary(report))
        out.print(f"Report: {output / 'report.html'}", markup=False, soft_wrap=True)
    raise shared.exit_with(report.verdict)
