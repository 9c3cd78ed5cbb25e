"""``quantinel evaluate``: accuracy and attack success, with intervals."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantinel.cli import shared
from quantinel.cli.guard import one_line
from quantinel.cli.progress import Reporter, console, reporting
from quantinel.errors import InputError, UsageError

if TYPE_CHECKING:
    from quantinel.audit.report import EvaluationRow, Rate
    from quantinel.data.triggers import Trigger

EPILOG = shared.example(
    "quantinel evaluate model.pt2 --data photos/",
    "quantinel evaluate victim/ --data cifar10:DIR --scheme int8",
    "quantinel evaluate out/ --data cifar10:DIR",
)


def evaluate(
    model: shared.Model,
    data: shared.Data,
    scheme: Annotated[
        str | None,
        typer.Option("--scheme", metavar="NAME", help="Also quantize by nearest rounding, as ordinary toolchains do."),
    ] = None,
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
    quiet: shared.Quiet = False,
    as_json: shared.Json = False,
) -> None:
    """Measure a float model, its ordinary quantization, or a hardened folder.

    CDA is accuracy on clean images, ASR the share of triggered images that get the target class (images of that
    class excluded), TA accuracy on triggered images, agreement the share of clean images answered as in float.
    Percentages with 95 % intervals. A victim directory and a hardened folder bring their trigger along.
    """
    model_options = shared.ModelOptions(arch, factory, num_classes, input_shape, mean, std)
    with reporting(quiet) as reporter:
        reporter.stage("starting")
        from quantinel.quantization.scheme import parse_scheme

        chosen_scheme = None if scheme is None else parse_scheme(scheme)
        known = shared.read_trigger(trigger, target)
        folder = Path(model)
        if _is_hardened(folder):
            option = "--scheme" if scheme is not None else "--calibration" if calibration else model_options.given()
            if option is not None:
                raise UsageError(f"{option} does not go with a hardened folder, which is quantized already; drop it")
            rows, name, known = _evaluate_folder(folder, data, split, limit, seed, known, reporter)
        else:
            if scheme is None and calibration is not None:
                raise UsageError("--calibration is only used with --scheme; give both, or drop it")
            loaded = model_options.load(model, reporter)
            if loaded.victim is not None and known is None:
                known = shared.victim_trigger(loaded)
                if known is not None:
                    reporter.note(f"a victim directory: testing its own trigger, target class {known[1]}")
            images, separate = shared.load_two_sets(
                data, calibration, calibration_split, calibration_images,
                input_shape=loaded.input_shape, split=split, limit=limit, seed=seed, reporter=reporter,
            )  # fmt: skip
            if chosen_scheme is not None and separate is None:
                from quantinel.data.sampling import split_calibration

                separate, images = split_calibration(images, calibration_images, seed)
                if not len(images):
                    raise InputError(
                        f"{images.name} is used up by calibration; give more images, or others with --calibration"
                    )
                reporter.note(f"{len(separate)} images are set aside for calibration, {len(images)} evaluated")
            from quantinel.pipeline.evaluate import evaluate as run_evaluate

            reporter.stage("evaluate")
            rows = run_evaluate(
                loaded,
                images,
                scheme=chosen_scheme,
                calibration=separate,
                trigger=None if known is None else known[0],
                target_class=None if known is None else known[1],
                progress=reporter,
            )
            name = images.name
        if all(row.cda is None for row in rows):
            reporter.note("accuracy is not measured: the images have no labels of the model's classes")
        if known is not None and any(row.asr is None for row in rows):
            reporter.note("attack success is not measured: no image is of another class than the target")
    if as_json:
        shared.print_json({"model": model, "data": name, "rows": [row.model_dump(mode="json") for row in rows]})
    else:
        _print_table(model, name, rows)


def _is_hardened(folder: Path) -> bool:
    return (folder / "model.onnx").is_file() and (folder / "report.json").is_file()


def _evaluate_folder(
    folder: Path,
    data: str,
    split: str,
    limit: int | None,
    seed: int,
    known: tuple[Trigger, int] | None,
    reporter: Reporter,
) -> tuple[list[EvaluationRow], str, tuple[Trigger, int] | None]:
    """Run ``model.onnx`` of a hardened folder, by default with the trigger that its report names; with that trigger."""
    from quantinel.audit.report import read_report
    from quantinel.backends.runtime import Session
    from quantinel.data.sources import load_images
    from quantinel.data.triggers import OverlayTrigger, trigger_from_dict
    from quantinel.pipeline.artefact_folder import MODEL
    from quantinel.pipeline.evaluate import evaluate_file

    recorded = dict(read_report(folder / "report.json").trigger or {})
    target = recorded.pop("target_class", None)
    if known is None and recorded and isinstance(target, int):
        if recorded.get("kind") == OverlayTrigger.kind:
            reporter.note("the trigger of its report is a picture, which it does not keep; give it with --trigger")
        else:
            known = trigger_from_dict(recorded, folder), target
            reporter.note(f"a hardened folder: testing the trigger of its report, target class {target}")
    channels, height, width = Session(folder / MODEL).input_shape
    images = load_images(
        data, input_shape=(channels, height, width), split=split, limit=limit, seed=seed, progress=reporter.images
    )
    reporter.stage("evaluate")
    row = evaluate_file(
        folder / MODEL,
        images,
        trigger=None if known is None else known[0],
        target_class=None if known is None else known[1],
    )
    return [row], images.name, known


def _print_table(model: str, data: str, rows: list[EvaluationRow]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from quantinel.reports import wording

    def success(row: EvaluationRow) -> Text:
        bare = wording.bare(row.base_rate)
        return shown(row.asr).append(f"\n{bare}" if bare else "", "not bold dim")

    def shown(rate: Rate | None) -> Text:
        if rate is None or rate.percent is None:
            return Text(wording.NOT_MEASURED, "dim")
        return Text(f"{rate.percent:.2f}", "bold").append(f"\n{wording.interval(rate)} ({rate.n})", "not bold dim")

    title = Text(one_line(f"{model} on {data}"), "bold")
    caption = (
        "percent, 95 % interval, (n images); CDA clean accuracy, ASR attack success (bare: the same images without the "
        "trigger, answered with the attacker's class all the same), TA triggered accuracy"
    )
    table = Table(
        title=title, title_justify="left", caption=caption, caption_justify="left", caption_style="dim",
        box=box.SIMPLE_HEAD,
    )  # fmt: skip
    table.add_column("Model")
    for column in ("CDA", "ASR", "TA", "Agreement"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        name = Text(wording.VARIANTS[row.variant], "bold").append(f"\n{wording.BACKENDS[row.backend]}", "not bold dim")
        table.add_row(name, shown(row.cda), success(row), shown(row.ta), shown(row.agreement))
    console().print(table)
