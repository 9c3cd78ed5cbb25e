"""compress: calibrate on the deployment grid and round to nearest, as an ordinary deployer does."""

from __future__ import annotations

from quantinel.backends.artefact import pack_integers
from quantinel.backends.onnx_qdq import PROFILES
from quantinel.bench.stages.calibration_images import calibration_images
from quantinel.bench.stages.job import Job
from quantinel.quantization.calibration import calibrate
from quantinel.quantization.quantized_model import quantize_nearest
from quantinel.quantization.scheme import parse_scheme

PROFILE = next(iter(PROFILES))
INTEGERS = "quantized.safetensors"


def run(job: Job) -> None:
    """Write ``quantized.safetensors``: integers by nearest rounding, scales, activation parameters."""
    graph = job.graph()
    images = calibration_images(job)
    ranges = calibrate(
        graph, images, parse_scheme(job.config["scheme"]), seed=job.config["seed"], progress=job.progress
    )
    (job.output / INTEGERS).write_bytes(pack_integers(quantize_nearest(graph, ranges), PROFILE))
