"""detect: score a float model with a detector; higher is more suspicious."""

from __future__ import annotations

from quantinel.bench.methods import configure
from quantinel.bench.stages.calibration_images import calibration_images
from quantinel.bench.stages.job import Job
from quantinel.detectors import DETECTORS
from quantinel.detectors.subject import Subject
from quantinel.quantization.scheme import parse_scheme

DETECTION = "detection.json"


def run(job: Job) -> None:
    """Write ``detection.json``: the score and the statistics behind it."""
    detector = DETECTORS[job.config["detector"]]
    graph = job.graph()
    images = calibration_images(job) if detector.needs == "images" else None
    options = configure(detector.config, job.config["settings"], detector.name)
    subject = Subject(graph, parse_scheme(job.config["scheme"]), images, job.config["seed"])
    found = detector.run(subject, options)
    job.write_json(
        DETECTION,
        {
            "score": found.score,
            "statistics": dict(found.statistics),
            **job.about(),
            "images": 0 if images is None else len(images),
        },
    )
