"""Harden: load -> fold -> calibrate -> choose the integers -> emit -> verify -> report, one artefact at the end."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor

from quantinel.audit.report import Report
from quantinel.backends.artefact import pack_integers
from quantinel.backends.emitted_graph import EmittedGraph, describe
from quantinel.backends.onnx_qdq import profile_named, to_onnx
from quantinel.backends.runtime import Session, execution
from quantinel.backends.verification import (
    compare_integers,
    compare_outputs,
    compared_batch,
    load_onnx,
    measure_tolerance,
    simulated_logits,
)
from quantinel.data.copies import first_copies
from quantinel.data.images import ImageSet
from quantinel.data.sampling import split_calibration
from quantinel.data.triggers import Trigger, trigger_files
from quantinel.defenses import DEFAULT_ROUNDING, rounding_method
from quantinel.detectors import Subject
from quantinel.errors import UsageError
from quantinel.files import atomic_directory, check_output
from quantinel.model.graph import FloatGraph
from quantinel.model.loading import LoadedModel
from quantinel.pipeline.artefact_folder import INTEGERS, MODEL, finish_folder, write_probe
from quantinel.pipeline.build_report import Run, Verified, build_report, recipe
from quantinel.pipeline.clock import Clock
from quantinel.pipeline.evaluate import check_labels, check_trigger
from quantinel.pipeline.float_graph import float_graph
from quantinel.pipeline.graph_check import graph_check
from quantinel.pipeline.input_findings import input_findings
from quantinel.pipeline.measure import Variant, run_variant, stamp
from quantinel.quantization.calibration import Progress, calibrate
from quantinel.quantization.quantized_model import QuantizedModel, quantize_nearest
from quantinel.quantization.reconstruction import RoundingMethod, choose_codes
from quantinel.quantization.scheme import QuantScheme
from quantinel.quantization.synthetic_images import SYNTHETIC_IMAGES, synthetic_images


@dataclass(frozen=True)
class HardenOptions:
    """What to do; every field is recorded in ``recipe.toml``.

    Attributes:
        scheme: the deployment grid.
        rounding: how to choose the integers.
        backend: storage profile of the emitted file.
        calibration_images: images set aside for calibration; never used for evaluation. Of synthetic images, where
            there are no others, at most `SYNTHETIC_IMAGES` are made.
        seed: of the split and of all sampling.
        keep_probe: store up to 128 calibration images and their simulated logits in the output, so that
            ``verify`` can run without the data.
        overwrite: replace an existing output folder.
    """

    scheme: QuantScheme = field(default_factory=QuantScheme)
    rounding: RoundingMethod = field(default_factory=lambda: rounding_method(DEFAULT_ROUNDING))
    backend: str = "onnxruntime-x86"
    calibration_images: int = 256
    seed: int = 0
    keep_probe: bool = True
    overwrite: bool = False


def harden(
    model: LoadedModel,
    data: ImageSet | None,
    output: str | Path,
    options: HardenOptions | None = None,
    *,
    calibration: ImageSet | None = None,
    trigger: Trigger | None = None,
    target_class: int | None = None,
    command: str = "",
    progress: Progress | None = None,
) -> Report:
    """Choose integers that keep a backdoor asleep, emit them, verify the file, and write the report.

    Args:
        model: the float model.
        data: images; labels are optional. Without ``calibration`` a random part is set aside for calibration. None
            where there are no images: integers are chosen on synthetic ones, nothing is evaluated, and the verdict is
            INCONCLUSIVE at best.
        output: folder to create.
        options: scheme, rounding and the rest.
        calibration: calibration images of their own; ``data`` is then used for evaluation only, if there are any.
        trigger: a known trigger to test, with ``target_class``.
        target_class: the class that the trigger is meant to produce.
        command: recorded in the report.
        progress: called as work proceeds.

    Returns:
        The report; the folder holds it as ``report.json``.

    Raises:
        UsageError: a trigger without images to stamp it on.
        QuantinelError: bad input, unsupported model, full disk; nothing is left behind.
    """
    output = Path(output)
    options = options or HardenOptions()
    profile = profile_named(options.backend)
    check_trigger(trigger, target_class, model.num_classes)
    if data is None and trigger is not None:
        raise UsageError("a trigger is tested on images, and there are none; give data, or no trigger")
    check_output(output, options.overwrite)
    clock = Clock()
    with clock.measure("trace and fold"):
        graph = float_graph(model, calibration if data is None else data, trigger)
    synthetic = calibration is None and data is None
    if calibration is None and data is not None:
        calibration, data = split_calibration(data, options.calibration_images, options.seed)
    elif calibration is None:
        with clock.measure("make images"):
            count = min(options.calibration_images, SYNTHETIC_IMAGES)
            calibration = synthetic_images(graph, count, seed=options.seed, progress=progress)
    evaluation = _no_images(graph) if data is None else check_labels(data, model.num_classes)
    with clock.measure("calibrate"):
        ranges = calibrate(graph, calibration, options.scheme, seed=options.seed, progress=progress)
        nearest = quantize_nearest(graph, ranges)
    version = metadata.version("quantinel")
    with clock.measure("emit"):  # what cannot be written is refused here, before the integers are chosen
        nearest_file = to_onnx(nearest, profile, version).SerializeToString()
    with clock.measure("look at the weights"):
        subject = Subject(graph, options.scheme, None, options.seed)
        noticed = input_findings(subject)
    with clock.measure("choose integers"):
        hardened, outcomes = choose_codes(graph, ranges, options.rounding, seed=options.seed, progress=progress)
    with atomic_directory(output, options.overwrite) as folder:
        with clock.measure("emit"):
            emitted = to_onnx(hardened, profile, version)
            (folder / MODEL).write_bytes(emitted.SerializeToString())
            described = describe(emitted)
        with clock.measure("verify"):
            verified = _verify(folder / MODEL, hardened, described, calibration)
            tolerance = verified.outputs.tolerance
            (folder / INTEGERS).write_bytes(pack_integers(hardened, profile.name, tolerance, described))
        with clock.measure("evaluate"):
            stamped = None if trigger is None else stamp(evaluation, trigger)
            variants = _evaluate(graph, nearest_file, folder / MODEL, evaluation, stamped, target_class, progress)
        for name, weights in trigger_files(trigger).items():
            (folder / name).write_bytes(weights)
        if options.keep_probe:
            write_probe(folder, calibration, verified.simulated)
        run = Run(
            model=model, scheme=options.scheme, rounding=options.rounding, backend=options.backend,
            seed=options.seed, command=command, calibration=calibration, synthetic=synthetic, evaluation=evaluation,
            trigger=trigger, target_class=target_class, stamped=stamped, hardened=hardened, outcomes=outcomes,
            residuals=subject.crowding, input_findings=noticed, verified=verified, variants=variants,
            seconds=clock.seconds, version=version,
        )  # fmt: skip
        report = build_report(run)
        finish_folder(folder, report, recipe(run), model.sha256)
    return report


def _no_images(graph: FloatGraph) -> ImageSet:
    """An empty set: every figure of an evaluation on it is missing, and what requires one did not run."""
    return ImageSet(torch.empty(0, *graph.input_shape, dtype=torch.uint8), None, "none")


def _verify(path: Path, hardened: QuantizedModel, emitted: EmittedGraph, probe: ImageSet) -> Verified:
    """Re-open the file: integers, operators, logits against the simulation, integer execution."""
    model = load_onnx(path)
    comparison = compare_integers(model, hardened.layers, hardened.activations)
    simulation, batch = hardened.simulate(), compared_batch(hardened.scheme)
    simulated = simulated_logits(simulation, probe.images, batch)
    tolerance = measure_tolerance(simulation, probe.images, simulated, hardened.output_step, batch)
    first = first_copies(probe.images)
    logits = Session(path).logits(probe.images[first], batch)
    outputs = compare_outputs(logits, simulated[first], hardened.output_step, tolerance)
    ran = execution(path, list(hardened.layers))
    return Verified(comparison, graph_check(model, emitted), outputs, ran, simulated)


def _evaluate(
    graph: FloatGraph,
    nearest_file: bytes,
    hardened_file: Path,
    images: ImageSet,
    stamped: Tensor | None,
    target_class: int | None,
    progress: Progress | None,
) -> tuple[Variant, Variant, Variant]:
    """Float, nearest and hardened on the evaluation images; the quantized ones by ONNX Runtime."""

    def report(done: int) -> None:
        if progress is not None:
            progress("evaluate", done, 3)

    floating = run_variant(
        "float", "float", lambda batch: simulated_logits(graph.module, batch), images, stamped, target_class
    )
    report(1)
    nearest = run_variant("nearest", "onnxruntime", Session(nearest_file).logits, images, stamped, target_class)
    report(2)
    hardened = run_variant("hardened", "onnxruntime", Session(hardened_file).logits, images, stamped, target_class)
    report(3)
    return floating, nearest, hardened
