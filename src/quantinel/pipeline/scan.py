"""Scan: load -> fold -> calibrate -> look for what only wakes after compression -> verdict."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from quantinel.audit.artefact import artefact_check
from quantinel.audit.judging import Place
from quantinel.audit.rules import ARTEFACT
from quantinel.audit.scan_report import ScanCheck, ScanReport
from quantinel.audit.thresholds import load_thresholds
from quantinel.backends.artefact_comparison import compare_artefact
from quantinel.data.images import ImageSet
from quantinel.data.sampling import balanced_indices
from quantinel.detectors import Subject
from quantinel.errors import InputError, NotAssessable, VerificationError
from quantinel.inversion.budget import Budget
from quantinel.model.graph import FloatGraph, float_products
from quantinel.model.loading import LoadedModel
from quantinel.pipeline.build_scan_report import Scan, build_scan_report
from quantinel.pipeline.clock import Clock
from quantinel.pipeline.evaluate import check_labels
from quantinel.pipeline.float_graph import float_graph
from quantinel.pipeline.identity import describe_model
from quantinel.pipeline.scan_behaviour import measure_behaviour, scheme_result
from quantinel.pipeline.scan_checks import plan, run_checks
from quantinel.pipeline.scan_combination import combined_check
from quantinel.pipeline.scan_evidence import recovered_trigger
from quantinel.pipeline.scan_options import MIN_IMAGES, ScanOptions
from quantinel.quantization.calibration import Progress
from quantinel.quantization.scheme import QuantScheme


def scan(
    model: LoadedModel,
    data: ImageSet | None,
    options: ScanOptions | None = None,
    *,
    command: str = "",
    harden_command: Callable[[str], str] | None = None,
    today: datetime.date | None = None,
    progress: Progress | None = None,
) -> ScanReport:
    """Look for behaviour that only compression wakes.

    Args:
        model: the float model.
        data: images of its own kind; labels are optional. None runs the data-free detectors only, and the verdict
            is then FAIL or INCONCLUSIVE.
        options: schemes, detectors, budget and the rest.
        command: recorded in the report.
        harden_command: the command that hardens this model, by name of the scheme; the report recommends it.
        today: suppressions that expired before it do not apply; by default the present day (UTC).
        progress: called as work proceeds.

    Returns:
        The report, nothing is written.

    Raises:
        QuantinelError: bad input, or a model that cannot be traced.
    """
    options = options or ScanOptions()
    thresholds = options.thresholds or load_thresholds()
    images = None if data is None else _sample(data, options, model)
    clock = Clock()
    with clock.measure("trace and fold"):
        graph = float_graph(model, images)
    budget = Budget(options.budget)
    subjects = {scheme.name: Subject(graph, scheme, images, options.seed, budget=budget) for scheme in options.schemes}
    first = subjects[options.schemes[0].name]
    pruned = {pruning.name: replace(first, pruning=(pruning,)) for pruning in options.prunings}
    with clock.measure("detectors"):
        outcome = run_checks(plan(subjects, pruned, options.detectors), thresholds, options.detectors, progress)
    checks, schemes, triggers = list(outcome.checks), [], []
    for name, subject in subjects.items():
        checks.append(combined_check(name, subject, outcome, thresholds))
        with clock.measure("behaviour"):
            check, answers = measure_behaviour(name, subject)
            checks.append(check)
        with clock.measure("evidence"):
            names = None if images is None else images.class_names
            schemes.append(scheme_result(name, answers, subject.crowding, names))
            for identity, found in outcome.evidence.items():
                made = recovered_trigger(identity, name, found, subject) if identity.startswith(f"{name}/") else None
                triggers += [] if made is None else [made]
    if options.artefact is not None:
        with clock.measure("artefact"):
            checks.append(_compare(graph, options.artefact, images, options.schemes))
    weights = sum(graph.weight(layer).numel() for layer in graph.layers)
    return build_scan_report(
        Scan(
            source=model.source, model={**describe_model(model, weights), "layers": len(graph.layers)},
            limits=_float_limits(graph), images=images, options=options, thresholds=thresholds, checks=checks,
            schemes=schemes, triggers=triggers, cost=outcome.cost, seconds=clock.seconds, command=command,
            harden_command=harden_command, today=today or datetime.datetime.now(datetime.UTC).date(),
        )
    )  # fmt: skip


def _float_limits(graph: FloatGraph) -> list[str]:
    """What stays float in a compressed model, as a sentence."""
    names, weights = float_products(graph)
    held = f", with {weights} stored weights" if weights else ""
    told = f"Operators that stay in float, because only layers are quantized: {', '.join(names)}{held}."
    return [told] if names else []


def _sample(data: ImageSet, options: ScanOptions, model: LoadedModel) -> ImageSet:
    """The images to scan with.

    Raises:
        InputError: too few, or not of the model's shape.
    """
    if data.shape != model.input_shape:
        raise InputError(f"the model takes images of shape {model.input_shape}, {data.name} has {data.shape}")
    if len(data) < MIN_IMAGES:
        raise InputError(f"{data.name} has {len(data)} images; give at least {MIN_IMAGES}, 256 are recommended")
    data = check_labels(data, model.num_classes)
    if len(data) <= options.images:
        return data
    return data.take(balanced_indices(data.labels, len(data), options.images, options.seed))


def _compare(graph: FloatGraph, path: Path, images: ImageSet | None, schemes: Sequence[QuantScheme]) -> ScanCheck:
    place = Place(ARTEFACT, "The shipped file is the plain quantization of the model", path.name, True)
    clock = Clock()
    try:
        with clock.measure("compare"):
            found = compare_artefact(graph, path, images, schemes)
    except (NotAssessable, VerificationError) as error:
        return place.check("not_run", reason=str(error))
    return artefact_check(place, found, clock.seconds["compare"])
