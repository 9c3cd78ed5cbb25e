"""defend: choose the integers with a rounding method, on the grids and ranges of the compress stage."""

from __future__ import annotations

import dataclasses
import json

from quantinel.backends.artefact import pack_integers, read_integers, restore
from quantinel.bench.methods import configure
from quantinel.bench.stages.calibration_images import calibration_images
from quantinel.bench.stages.compress import INTEGERS, PROFILE
from quantinel.bench.stages.job import Job
from quantinel.defenses import DEFENSES
from quantinel.quantization.calibration import Calibration
from quantinel.quantization.reconstruction import choose_codes

LAYERS = "layers.json"
TIMES = "_times.json"


def run(job: Job) -> None:
    """Write ``quantized.safetensors`` and ``layers.json`` (what was changed in every layer)."""
    graph = job.graph()
    nearest = restore(graph, read_integers(job.folders["compressed"] / INTEGERS))
    images = calibration_images(job)
    ranges = Calibration(nearest.scheme, nearest.placement, dict(nearest.activations), nearest.output_step, images)
    defense = DEFENSES[job.config["defense"]]
    method = configure(defense.build, job.config["settings"], defense.name)
    chosen, outcomes = choose_codes(graph, ranges, method, seed=job.config["seed"], progress=job.report)
    (job.output / INTEGERS).write_bytes(pack_integers(chosen, PROFILE))
    layers = [dataclasses.asdict(outcome) for outcome in outcomes]
    seconds = {layer["layer"]: layer.pop("seconds") for layer in layers}
    job.write_json(LAYERS, layers)
    (job.output / TIMES).write_text(json.dumps(seconds), "utf-8")
