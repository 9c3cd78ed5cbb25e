"""Evaluate a model: accuracy, attack success, and what quantization changes; for hardened directories too."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import torch

from quantinel.audit.report import EvaluationRow
from quantinel.backends.onnx_qdq import PROFILES, to_onnx
from quantinel.backends.runtime import Session
from quantinel.backends.verification import simulated_logits
from quantinel.data.images import ImageSet
from quantinel.data.triggers import Trigger
from quantinel.errors import UsageError
from quantinel.model.loading import LoadedModel
from quantinel.pipeline.float_graph import float_graph
from quantinel.pipeline.measure import Variant, evaluation_row, run_variant, stamp
from quantinel.quantization.calibration import Progress, calibrate
from quantinel.quantization.quantized_model import quantize_nearest
from quantinel.quantization.scheme import QuantScheme

logger = logging.getLogger(__name__)


def check_trigger(trigger: Trigger | None, target_class: int | None, num_classes: int) -> None:
    """A trigger and its target belong together, and the target is a class of the model.

    Raises:
        UsageError: otherwise.
    """
    if (trigger is None) != (target_class is None):
        raise UsageError("a trigger and its target class belong together; give both --trigger and --target, or neither")
    if target_class is not None and not 0 <= target_class < num_classes:
        raise UsageError(f"target class {target_class} is not one of the model's {num_classes} classes")


def check_labels(data: ImageSet, num_classes: int) -> ImageSet:
    """Images with labels that are classes of the model, or without labels where their meaning is unknown.

    The folders of a tree are numbered in alphabetical order. That is the model's own order only where there is one
    folder per class; otherwise folders whose names are class numbers count as those, and any others are no labels:
    an accuracy against them would be wrong without looking wrong.

    Raises:
        UsageError: a label that the model does not have.
    """
    names = data.class_names
    if data.labels is not None and names is not None and len(names) < num_classes:
        numbers = [int(name) if name.isascii() and name.isdecimal() else num_classes for name in names]
        if max(numbers) < num_classes and len(set(numbers)) == len(numbers):
            return replace(data, labels=torch.tensor(numbers)[data.labels], class_names=None)
        logger.warning(
            "%s has %d classes, the model has %d: which is which is unknown, so accuracy is not measured; name the "
            "folders by the model's class numbers (0 to %d), or give an .npz whose labels are those numbers",
            data.name, len(names), num_classes, num_classes - 1,
        )  # fmt: skip
        return replace(data, labels=None, class_names=None)
    if data.labels is not None and len(data) and int(data.labels.max()) >= num_classes:
        raise UsageError(
            f"{data.name} has labels up to {int(data.labels.max())}, the model has {num_classes} classes; "
            "give data of the model's own classes, or unlabeled images"
        )
    return data


def evaluate(
    model: LoadedModel,
    data: ImageSet,
    *,
    scheme: QuantScheme | None = None,
    calibration: ImageSet | None = None,
    trigger: Trigger | None = None,
    target_class: int | None = None,
    progress: Progress | None = None,
) -> list[EvaluationRow]:
    """Float model, and with ``scheme`` its nearest-rounded deployment, run by ONNX Runtime.

    Args:
        model: the float model.
        data: evaluation images; labels are optional.
        scheme: also quantize to this grid.
        calibration: calibration images, needed with a scheme.
        trigger: a known trigger, with ``target_class``.
        target_class: the class that the trigger is meant to produce.
        progress: called as work proceeds.
    """
    check_trigger(trigger, target_class, model.num_classes)
    data = check_labels(data, model.num_classes)
    stamped = None if trigger is None else stamp(data, trigger)
    graph = float_graph(model, data, trigger)
    floating = run_variant(
        "float", "float", lambda images: simulated_logits(graph.module, images), data, stamped, target_class
    )
    rows = [evaluation_row(floating, floating)]
    if scheme is not None:
        if calibration is None:
            raise UsageError("quantizing needs calibration images; give --calibration, or fewer --calibration-images")
        nearest = quantize_nearest(graph, calibrate(graph, calibration, scheme, progress=progress))
        session = Session(to_onnx(nearest, PROFILES["onnxruntime-x86"]).SerializeToString())
        variant = run_variant("nearest", "onnxruntime", session.logits, data, stamped, target_class)
        rows.append(evaluation_row(variant, floating))
    return rows


def evaluate_file(
    path: Path, data: ImageSet, *, trigger: Trigger | None = None, target_class: int | None = None
) -> EvaluationRow:
    """An emitted ONNX file, run by ONNX Runtime; agreement is not known without the float model.

    Args:
        path: ``model.onnx`` of a hardened directory.
        data: evaluation images.
        trigger: a known trigger, with ``target_class``.
        target_class: the class that the trigger is meant to produce.
    """
    session = Session(path)
    check_trigger(trigger, target_class, session.num_classes)
    if data.shape != session.input_shape:
        raise UsageError(f"the model takes images of shape {session.input_shape}, {data.name} has {data.shape}")
    data = check_labels(data, session.num_classes)
    stamped = None if trigger is None else stamp(data, trigger)
    variant: Variant = run_variant("hardened", "onnxruntime", session.logits, data, stamped, target_class)
    return evaluation_row(variant, variant).model_copy(update={"agreement": None})
