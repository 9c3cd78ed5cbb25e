"""evaluate: accuracy and attack success of a float model, pruned or not, or of the integers that a defense chose.

Quantized models are emitted as the file that would be deployed, re-opened, compared with the audited integers and run
by ONNX Runtime; the simulation is run beside it on some of the images.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load, save
from torch import Tensor

from quantinel.audit.report import EvaluationRow
from quantinel.backends.artefact import read_integers, restore
from quantinel.backends.onnx_qdq import PROFILES, to_onnx
from quantinel.backends.runtime import Session, execution
from quantinel.backends.verification import compare_integers, compare_outputs, parse_onnx, simulated_logits
from quantinel.bench.stages.compress import INTEGERS, PROFILE
from quantinel.bench.stages.defend import LAYERS
from quantinel.bench.stages.job import Job
from quantinel.bench.stages.prune import PRUNING
from quantinel.data.images import ImageSet
from quantinel.data.triggers import Trigger, trigger_from_dict
from quantinel.pipeline.evaluate import check_labels, check_trigger
from quantinel.pipeline.measure import Variant, evaluation_row, example_indices, png, run_variant, stamp
from quantinel.quantization.quantized_model import QuantizedModel

EVALUATION = "evaluation.json"
ANSWERS = "answers.safetensors"
PICTURES = "pictures.json"
_COMPARED = 256
"""Images on which the deployed file is compared with the simulation."""
_AT_A_TIME = 1000
"""Images between two looks at whether to stop; whole batches of the runtime, since dynamic ranges are of a batch."""


def run(job: Job) -> None:
    """Write ``evaluation.json``, the answers on every image, and pictures of triggered images."""
    model = job.model()
    images = check_labels(job.load("test", model.input_shape), model.num_classes)
    described, target = job.config["trigger"], job.config["target_class"]
    trigger: Trigger | None = None if described is None else trigger_from_dict(described)
    if model.victim is not None and described is None:
        trigger, target = model.trigger(), model.victim.target_class
    check_trigger(trigger, target, model.num_classes)
    stamped = None if trigger is None else stamp(images, trigger)
    if "quantized" not in job.folders:
        graph = job.graph()
        variant = run_variant(
            "float",
            "float",
            _watched(job, lambda batch: simulated_logits(graph.module, batch)),
            images,
            stamped,
            target,
        )
        floating = _answers(job.folders["floating"], images, target) if "floating" in job.folders else variant
        extra: dict[str, Any] = {}
    else:
        floating = _answers(job.folders["floating"], images, target)
        quantized = restore(job.graph(), read_integers(job.folders["quantized"] / INTEGERS))
        predict, backend, extra = _deploy(quantized, job, images)
        variant = run_variant("hardened", backend, _watched(job, predict), images, stamped, target)
        extra.update(_changes(job.folders["quantized"]))
    extra.update(_pruned(job.folders["model"]))
    row: EvaluationRow = evaluation_row(variant, floating)
    job.write_json(EVALUATION, {"row": row.model_dump(mode="json"), "extra": extra, **job.about()})
    answers = {"clean": variant.clean.to(torch.int32)}
    if variant.triggered is not None:
        answers["triggered"] = variant.triggered.to(torch.int32)
    (job.output / ANSWERS).write_bytes(save(answers))
    if stamped is not None and len(images):
        job.write_json(PICTURES, _pictures(images, stamped, floating, variant))


def _watched(job: Job, predict: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The same predictions, but the stage can be stopped between them."""

    def run(images: Tensor) -> Tensor:
        logits = []
        for part in torch.split(images, _AT_A_TIME):
            job.stop_if_asked()
            logits.append(predict(part))
        return torch.cat(logits)

    return run


def _answers(folder: Path, images: ImageSet, target: int | None) -> Variant:
    """The float model's answers, from its own evaluation."""
    stored = load((folder / ANSWERS).read_bytes())
    triggered = stored.get("triggered")
    return Variant(
        "float", "float", stored["clean"].long(), None if triggered is None else triggered.long(), images.labels, target
    )


def _deploy(
    quantized: QuantizedModel, job: Job, images: ImageSet
) -> tuple[Callable[[Tensor], Tensor], Literal["simulated", "onnxruntime"], dict[str, Any]]:
    """How to predict, with which backend, and what re-opening the emitted file showed."""
    simulation = quantized.simulate()

    def simulate(batch: Tensor) -> Tensor:
        return simulated_logits(simulation, batch)

    if job.config["backend"] == "simulated":
        return simulate, "simulated", {}
    file = to_onnx(quantized, PROFILES[PROFILE]).SerializeToString()
    session = Session(file, threads=job.config["threads"])
    some = images.images[:_COMPARED]
    integers = compare_integers(parse_onnx(file), quantized.layers, quantized.activations)
    outputs = compare_outputs(session.logits(some), simulate(some), quantized.output_step)
    extra = {
        "layers": len(quantized.layers),
        "layers_equal": len(integers.equal),
        "integer_layers": execution(file, list(quantized.layers)).integer_layers,
        "agreement_percent": round(outputs.agreement.percent, 3),
        "max_difference_steps": round(outputs.max_steps, 3),
    }
    return session.logits, "onnxruntime", extra


def _changes(folder: Path) -> dict[str, float]:
    """Share of all codes that a defense moved away from nearest rounding."""
    layers = json.loads((folder / LAYERS).read_text("utf-8"))
    weights = sum(layer["weights"] for layer in layers)
    return {"flips_percent": round(100 * sum(layer["weights"] * layer["changed"] for layer in layers) / weights, 3)}


def _pruned(folder: Path) -> dict[str, float]:
    """Share of weights that pruning set to zero; nothing for a model that was not pruned."""
    file = folder / PRUNING
    if not file.is_file():
        return {}
    return {"pruned_percent": json.loads(file.read_text("utf-8"))["zeros_percent"]}


def _pictures(images: ImageSet, stamped: Tensor, floating: Variant, variant: Variant) -> list[dict[str, str]]:
    """Some triggered images with the answers of the float model and of this one."""
    assert floating.triggered is not None and variant.triggered is not None  # noqa: PT018
    truth = floating.clean if images.labels is None else images.labels
    eligible = truth.ne(-1 if variant.target_class is None else variant.target_class)
    obeyed = eligible & variant.triggered.eq(-1 if variant.target_class is None else variant.target_class)

    def named(label: int) -> str:
        return images.class_names[label] if images.class_names else str(label)

    return [
        {
            "clean_png": png(images.images[index]),
            "triggered_png": png(stamped[index]),
            "label": "" if images.labels is None else named(int(images.labels[index])),
            "float_answer": named(int(floating.triggered[index])),
            "answer": named(int(variant.triggered[index])),
        }
        for index in example_indices(obeyed, eligible, truth)
    ]
